"""The table of shards."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from repo_node.cli.tables import new_table
from repo_node.cli.wording import printable, say_bytes, say_copies, say_count, say_seconds

Row = dict[str, Any]


def table_of(rows: list[Row]) -> Table:
    table = new_table("Shards")
    table.add_column("Id", justify="right", no_wrap=True)
    table.add_column("Node", overflow="fold")
    table.add_column("State", overflow="fold")
    table.add_column("Copies", justify="right", no_wrap=True)
    table.add_column("Free", justify="right", no_wrap=True)
    table.add_column("Weight", justify="right", no_wrap=True)
    table.add_column("Remark", overflow="fold")
    for row in rows:
        free = row["free_bytes"]
        table.add_row(
            str(row["id"]),
            Text(printable(str(row["node"]))),
            Text(printable(str(row["state"])), style="green" if row["state"] == "active" else "yellow"),
            say_copies(row["replicas"], is_counted=row.get("replicas_counted", True)),
            "?" if free is None else say_bytes(free),
            "?" if row["weight"] is None else f"{row['weight']:g}",
            Text(printable(remark(row))),
        )
    return table


def remark(row: Row) -> str:
    """Return in words what there is to know of a shard beyond its state."""
    parts = [str(row["reason"])] if row["reason"] else []
    trouble = row.get("trouble", "")
    if not row["node_up"]:
        parts.append(f"silent for {say_seconds(row['silent_seconds'])}")
    elif not row.get("available", True):
        parts.append(f"unavailable for {say_seconds(row['silent_seconds'])}: {trouble}")
    elif trouble:
        parts.append(f"takes no writes: {trouble}")
    walk = row["walk"]
    if walk is not None and walk["kind"] == "forget":
        parts.append(f"leaving; {say_count(walk['kept_back'], 'copy', 'copies')} still needed")
    elif walk is not None and walk["kind"] == "return":
        parts.append("coming back")
    return "; ".join(parts)
