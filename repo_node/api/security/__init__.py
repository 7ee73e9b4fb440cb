"""Users, groups, permission targets and tokens over REST, as Artifactory has them."""
