"""The life of shards: list, add, drain, take out of and into use, replace, remove."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.calls import CALL_RETRY, check_answer, failure_of, run_call, say_wait
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.node import FILE, load_config
from repo_node.cli.shard_removal import give_up_last_copies, is_kept_back, why_kept_back
from repo_node.cli.shard_table import Row, table_of
from repo_node.cli.tables import new_console
from repo_node.cli.wording import printable, say_copies
from repo_node.client.errors import ClientError
from repo_node.client.rest import Client, Endpoint
from repo_node.config import NodeConfig
from repo_node.db import nodes
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.servers import Servers, drop

SHARDS_PATH = "/api/holdfast/shards"
POLL_SECONDS = 1.0
LINE_SECONDS = 10.0

SHARD = click.argument("shard", metavar="ID", type=click.IntRange(1, 32_767))
WAIT = click.option("--wait", is_flag=True, help="Wait until it is done, and show how far it is.")
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.group()
def shard() -> None:
    """Add, drain, replace and remove the disks that hold the blobs.

    Every change is safe for the data: copies are made elsewhere before one is taken away.

    \b
    Examples:
      holdfast shard replace 3        a dead disk: then mount an empty one and tell its node, as it says
      holdfast shard drain 3 --wait      then take it out of its node's file and `holdfast node reload` it:
      holdfast shard remove 3
    """


@shard.command("list")
@AS_JSON
@connection_options
def list_shards(connection: ConnectionOptions, as_json: bool) -> None:
    """List every shard with its state, why it is in it, and what is being done about it.

    \b
    Example:
      holdfast shard list --json | jq '.shards[] | select(.state == "lost")'
    """
    answer = run_call(connection, lambda client: client.call("GET", SHARDS_PATH), "shards")
    if as_json:
        show_json(answer)
    else:
        new_console().print(table_of(answer["shards"]))


@shard.command("add")
@click.argument("path", metavar="DIRECTORY", type=click.Path(path_type=Path, file_okay=False))
@click.option("--config", metavar="FILE", type=FILE, required=True, help="The TOML of the node that has the disk.")
@click.option("--weight", type=click.FloatRange(0.001, 1000), help="Its share; by default by its capacity.")
@click.option("--reserve-bytes", type=click.IntRange(0), default=1 << 30, show_default=True, help="Kept free.")
def add_shard(path: Path, config: Path, weight: float | None, reserve_bytes: int) -> None:
    """Add a disk to a node's configuration, and let the node use it. Run it on that node's machine.

    DIRECTORY must be empty or absent: the node makes it a shard, at once when it runs. Copies then move there by
    themselves, about the share that its weight asks for.

    \b
    Example:
      holdfast shard add /srv/disk3 --config /etc/holdfast/node.toml
    """
    before = load_config(config)
    absolute = path.resolve()
    if any(section.path.resolve() == absolute for section in before.shards):
        raise click.ClickException(f"{absolute} is a shard of this node already.")
    if absolute.exists() and any(entry.name != "lost+found" for entry in absolute.iterdir()):
        raise click.ClickException(f"{absolute} is not empty; a new shard must be.")
    text = config.read_text("utf-8")
    keys = {"path": json.dumps(str(absolute)), "weight": weight, "reserve_bytes": reserve_bytes}
    section = "".join(f"{key} = {value}\n" for key, value in keys.items() if value is not None)
    config.write_text(text.rstrip("\n") + "\n\n[[shards]]\n" + section, "utf-8")
    try:
        load_config(config)
    except click.ClickException:
        config.write_text(text, "utf-8")
        raise
    click.echo(f"Added {printable(str(absolute))} to {config}.")
    name = before.node.id
    try:
        asyncio.run(tell_node(before, absolute))
    except CatalogueUnavailable as error:
        command = f"holdfast node reload {name} --shard {printable(str(absolute))}"
        click.echo(f"Node {name} was not told: {printable(str(error))}. `{command}`, or restart it.")
    else:
        click.echo(f"Node {name}, if it runs, takes it into use now; `holdfast shard list` shows it.")


async def tell_node(config: NodeConfig, path: Path) -> None:
    """Have the node of this configuration make ``path`` a shard. Raises ``CatalogueUnavailable``."""
    database = config.database
    connection = await Servers(database.dsn, timeout_seconds=database.connect_timeout_seconds).connect()
    try:
        await nodes.ask_reload(connection, config.node.id, str(path))
    finally:
        drop(connection)


@shard.command()
@SHARD
@WAIT
@connection_options
def drain(connection: ConnectionOptions, shard: int, wait: bool) -> None:
    """Move every copy off a shard. It goes on to be read; no blob ever has fewer copies than it should.

    \b
    Example:
      holdfast shard drain 3 --wait
    """
    change(connection, shard, "drain")
    click.echo(f"Shard {shard} is draining.")
    if wait:
        show_until_gone(connection, shard, lambda row: row is None or row["replicas"] == 0)
        click.echo(
            f"Shard {shard} is drained. Take it out of its node's file and `holdfast node reload` it; then "
            f"`holdfast shard remove {shard}` ends it."
        )


@shard.command()
@SHARD
@click.argument("weight", metavar="WEIGHT", type=click.FloatRange(0.001, 1000))
@connection_options
def weight(connection: ConnectionOptions, shard: int, weight: float) -> None:
    """Give a shard another share of its zone's copies; they move by themselves. A weight is mostly near 1.

    \b
    Example:
      holdfast shard weight 3 2
    """
    path, body = f"{SHARDS_PATH}/{shard}/weight", {"weight": weight}
    run_call(connection, lambda client: client.call("PUT", path, body=body), "weight")
    click.echo(f"Shard {shard} has the weight {weight:g} now, whatever its node's configuration says.")


@shard.command()
@SHARD
@connection_options
def readonly(connection: ConnectionOptions, shard: int) -> None:
    """Write no new copies to a shard; it keeps and serves what it has."""
    change(connection, shard, "readonly")
    click.echo(f"Shard {shard} takes no new copies.")


@shard.command()
@SHARD
@connection_options
def activate(connection: ConnectionOptions, shard: int) -> None:
    """Take a shard into use again, whether it was read-only, draining or lost.

    The copies on a lost shard count again only when they have been read and found right.
    """
    if change(connection, shard, "activate") == "returning":
        click.echo(f"Shard {shard} is coming back: its copies count again as they are read and found right.")
    else:
        click.echo(f"Shard {shard} is in use.")


@shard.command()
@SHARD
@YES
@connection_options
def replace(connection: ConnectionOptions, shard: int, yes: bool) -> None:
    """Give up a shard for good, so that an empty disk may take its place.

    It is declared lost, its copies are made anew elsewhere from the others, and its node lets go of the old disk.
    An empty one that is mounted at the same path becomes a new shard when the node is told to look.

    \b
    Example:
      holdfast shard replace 3
      umount /srv/disk3; mount /dev/sdx1 /srv/disk3 && holdfast node reload node-1 --shard /srv/disk3
    """
    listed = find_row(connection, shard)
    if not yes:
        click.confirm(f"Give up everything on {describe_row(listed)}?", abort=True)
    change(connection, shard, "replace")
    node, path = printable(str(listed["node"])), printable(str(listed["path"]))
    command = f"holdfast node reload {node} --shard {path}"
    click.echo(f"Shard {shard} is given up. Mount an empty disk at its path, then `{command}`.")


@shard.command()
@SHARD
@YES
@click.option(
    "--give-up-last-copies", "gives_up", is_flag=True, help="Lose what has no other copy; asks how many blobs."
)
@click.option("--count", type=click.IntRange(1), help="The number of these copies, instead of being asked for it.")
@connection_options
def remove(connection: ConnectionOptions, shard: int, yes: bool, gives_up: bool, count: int | None) -> None:
    """Take a drained or lost shard out of the cluster. It stays while a blob has no other copies.

    \b
    Examples:
      holdfast shard remove 3
      holdfast shard remove 3 --give-up-last-copies    its disk is dead for good, and so is what only it had
    """
    listed = find_row(connection, shard)
    if not yes:
        click.confirm(f"Remove {describe_row(listed)} from the cluster?", abort=True)
    path = f"{SHARDS_PATH}/{shard}"
    answer = run_call(connection, lambda client: client.call("DELETE", path), "outcome")
    if answer["outcome"] == "forgetting":
        row = show_until_gone(connection, shard, lambda row: row is None or is_kept_back(row))
        if row is not None and gives_up and row["walk"] is not None and row["walk"]["last_copies"]:
            give_up_last_copies(connection, path, shard, count)
            row = show_until_gone(connection, shard, lambda row: row is None or is_kept_back(row))
        if row is not None:
            raise click.ClickException(why_kept_back(shard, row))
    click.echo(f"Shard {shard} is removed.")
    if not listed["replaced"]:
        node, path = printable(str(listed["node"])), printable(str(listed["path"]))
        click.echo(
            f"Take {path} out of the file of {node} too: an empty directory there becomes a new shard at its start."
        )


def find_row(connection: ConnectionOptions, shard: int) -> Row:
    """Return a shard as it is listed: nobody is asked about one that is not there."""
    rows = run_call(connection, lambda client: client.call("GET", SHARDS_PATH), "shards")["shards"]
    row: Row | None = next((row for row in rows if row["id"] == shard), None)
    if row is None:
        raise click.ClickException(f"There is no shard {shard}; `holdfast shard list` shows them all.")
    return row


def describe_row(row: Row) -> str:
    """Return which shard this is, so that a mistyped number is noticed."""
    copies = say_copies(row["replicas"], is_counted=row.get("replicas_counted", True), unit=True)
    return f"shard {row['id']} ({printable(str(row['path']))} on {printable(str(row['node']))}, {copies})"


def change(connection: ConnectionOptions, shard: int, action: str) -> str:
    path = f"{SHARDS_PATH}/{shard}/{action}"
    return str(run_call(connection, lambda client: client.call("POST", path, body={}), "outcome")["outcome"])


def show_until_gone(connection: ConnectionOptions, shard: int, is_over: Any) -> Row | None:
    """Show how many copies are left on a shard until ``is_over``; return its row then, None when it is gone."""
    endpoint = find_endpoint(connection)
    try:
        return asyncio.run(watch(endpoint, shard, is_over))
    except ClientError as error:
        raise failure_of(error, connection, endpoint) from None


async def watch(endpoint: Endpoint, shard: int, is_over: Any) -> Row | None:
    console, quiet_seconds = new_console(stderr=True), LINE_SECONDS
    async with Client(endpoint, retry=CALL_RETRY, on_wait=say_wait) as client:
        while True:
            rows = check_answer(endpoint, await client.call("GET", SHARDS_PATH), ("shards",))["shards"]
            row: Row | None = next((row for row in rows if row["id"] == shard), None)
            if is_over(row):
                return row
            quiet_seconds += POLL_SECONDS
            if row is not None and quiet_seconds >= LINE_SECONDS:
                quiet_seconds = 0.0
                left = say_copies(row["replicas"], is_counted=row.get("replicas_counted", True), unit=True)
                console.print(f"shard {shard}: {left} left")
            await asyncio.sleep(POLL_SECONDS)
