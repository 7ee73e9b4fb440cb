"""Holdfast's node: metadata in Postgres, HTTP surfaces, security, cluster membership, command line."""

__version__ = "0.1.0"
