"""What a person is told and asked when a lost shard is to go and blobs still need it."""

from __future__ import annotations

import click

from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions
from repo_node.cli.shard_table import Row
from repo_node.cli.wording import printable, say_count


def give_up_last_copies(connection: ConnectionOptions, path: str, shard: int, count: int | None) -> None:
    """Say what will be lost, and let it go when the number of copies is typed or given."""
    lost = run_call(connection, lambda client: client.call("GET", f"{path}/last-copies"), "blobs", "artifacts", "paths")
    what = f"{say_count(lost['blobs'], 'blob')} and {say_count(lost['artifacts'], 'artifact')}"
    click.echo(f"Lost for good with shard {shard}: {what}, unless its disk comes back or they are uploaded again:")
    for one in lost["paths"]:
        click.echo(f"  {printable(str(one))}")
    if len(lost["paths"]) < lost["artifacts"]:
        click.echo("  ...")
    typed = count or click.prompt("Type the number of blobs to lose them", type=click.IntRange(1))
    body = {"copies": typed}
    run_call(connection, lambda client: client.call("POST", f"{path}/give-up", body=body), "outcome")


def why_kept_back(shard: int, row: Row) -> str:
    walk = row["walk"] or {}
    kept, last = say_count(walk.get("kept_back", 0), "blob"), walk.get("last_copies", 0)
    advice = (
        f" {last:,} of them have no other copy: bring its disk back, upload them again, or give them up with "
        f"`holdfast shard remove {shard} --give-up-last-copies`."
        if last
        else ""
    )
    return (
        f"Shard {shard} stays for now: {kept} with a copy on it are not whole elsewhere. It goes by itself "
        f"as soon as they are; `holdfast status` shows the repairs.{advice}"
    )


def is_kept_back(row: Row) -> bool:
    """Say whether a whole pass over a lost shard has found blobs that still need it."""
    walk = row["walk"]
    return walk is None or (walk["kind"] == "forget" and walk["passes"] > 0 and walk["kept_back"] > 0)
