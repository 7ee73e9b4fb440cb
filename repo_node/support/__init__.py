"""Support bundles: what helps to find out what is wrong with a cluster, from all its nodes, and none of its secrets."""
