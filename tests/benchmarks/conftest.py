"""The stock is tried on a node of the HTTP tests."""

from tests.repo_node.conftest import one

__all__ = ["one"]
