"""What tables say of a node, from the server's answer."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from repo_node.cli.wording import printable


def node_state(node: dict[str, Any]) -> Text:
    """Return whether the node is up, down, or being taken out of service."""
    if not node["up"]:
        return Text("down", style="red")
    return Text("leaving", style="yellow") if node.get("leaving") else Text("up", style="green")


def node_release(node: dict[str, Any]) -> Text:
    """Return the node's release, and the schema it was written for where that is known."""
    schema = node.get("schema_version")
    return Text(printable(str(node["version"]) + ("" if schema is None else f", schema {schema}")))
