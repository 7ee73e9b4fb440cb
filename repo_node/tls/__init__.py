"""TLS: a node's certificates, checked as its clients and peers will check them, and in use as soon as they change."""
