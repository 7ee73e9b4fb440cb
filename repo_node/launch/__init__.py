"""A whole cluster on one machine: an embedded Postgres, the nodes, and who looks after them."""
