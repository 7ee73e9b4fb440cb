"""The state of the cluster as tables of 80 columns, as JSON, once or again and again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from repo_node.cli.calls import CALL_RETRY, check_answer, run_call
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.node_table import node_release, node_state
from repo_node.cli.tables import new_console, new_table, show
from repo_node.cli.wording import printable, say_bytes, say_count, say_seconds
from repo_node.client.errors import ClientError
from repo_node.client.rest import Client, Endpoint

STATUS_PATH = "/api/holdfast/status"
STATUS_KEYS = ("nodes", "shards", "blobs")
WIDE_COLUMNS = 120


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON (with --watch: one a line).")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.2, max=3600),
    default=2.0,
    show_default=True,
    help="The time between two looks of --watch.",
)
@connection_options
def status(connection: ConnectionOptions, as_json: bool, watch: bool, interval: float) -> None:
    """Show nodes, zones, shards, blobs and missing copies.

    A blob is short while fewer good copies of it exist than its redundancy asks for; the cluster repairs that.
    Nothing is missing of blobs that nothing refers to any more: they wait for garbage collection.

    \b
    Examples:
      holdfast status
      holdfast status --watch
      holdfast status --json | jq .blobs.missing_copies
    """
    if watch:
        with suppress(KeyboardInterrupt):
            asyncio.run(watch_status(find_endpoint(connection), as_json, interval))
        return
    answer = run_call(connection, lambda client: client.call("GET", STATUS_PATH), *STATUS_KEYS)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        console = new_console()
        is_wide = console.width >= WIDE_COLUMNS
        (show if is_wide else console.print)(view_of(answer, is_wide=is_wide))


async def watch_status(endpoint: Endpoint, as_json: bool, interval_seconds: float) -> None:
    """Ask every ``interval_seconds`` and show the answer; a cluster that does not answer is shown as such."""
    console = new_console()
    live = Live(console=console, screen=True, auto_refresh=False) if sys.stdout.isatty() and not as_json else None
    task = asyncio.current_task()
    assert task is not None
    async with Client(endpoint, retry=CALL_RETRY) as client:
        with live or nullcontext():
            # A cancellation that meets a timeout inside a call may get lost there; the request for it stays.
            while not task.cancelling():
                view = await look(client, as_json, is_wide=console.width >= WIDE_COLUMNS)
                if live is not None:
                    live.update(view, refresh=True)
                else:
                    console.print(view, soft_wrap=as_json)
                await asyncio.sleep(interval_seconds)


async def look(client: Client, as_json: bool, *, is_wide: bool) -> RenderableType:
    try:
        answer = check_answer(client.endpoint, await client.call("GET", STATUS_PATH), STATUS_KEYS)
    except ClientError as error:
        return json.dumps({"error": str(error)}) if as_json else Text(printable(str(error)), style="red")
    return json.dumps(answer) if as_json else view_of(answer, is_wide=is_wide)


def view_of(answer: dict[str, Any], *, is_wide: bool) -> Group:
    """Return the whole view of one answer; ``is_wide`` leaves room for the shards' paths."""
    tables = (zones_table(answer), nodes_table(answer["nodes"]), shards_table(answer["shards"], is_wide=is_wide))
    return Group(*summary_lines(answer), *(part for table in tables for part in (Text(""), table)))


IN_USE = ("active", "read_only", "draining")


def summary_lines(answer: dict[str, Any]) -> Iterator[Text]:
    blobs = answer["blobs"]
    schema = f", schema {answer['schema_version']}" if "schema_version" in answer else ""
    yield Text(f"Cluster {printable(str(answer.get('cluster_id', 'without an id')))}{schema}", style="bold")
    garbage = blobs.get("unreferenced", 0)
    waiting = f"; nothing refers to {garbage:,} of them any more, garbage collection takes them" if garbage else ""
    yield Text(f"{say_count(blobs['count'], 'blob')}, {say_bytes(blobs['bytes'])}{waiting}")
    missing, short, queued = blobs["missing_copies"], blobs.get("short", 0), answer.get("repair_queue", 0)
    troubled = [one for one in answer["shards"] if one.get("trouble") and one["state"] in IN_USE]
    if missing == 0 and short == 0 and not all(shard["up"] for shard in troubled):
        yield Text("No copy is known to be missing, but some are on shards that are unavailable.", style="yellow")
    elif missing == 0 and short == 0:
        yield Text("No copy is missing." + (f" {queued:,} in the repair queue." if queued else ""), style="green")
    else:
        what = say_count(missing, "copy", "copies")
        yield Text(f"Missing: {what}, of {say_count(short, 'blob')}; {queued:,} in the repair queue.", style="yellow")
    down = [printable(str(node["id"])) for node in answer["nodes"] if not node["up"]]
    if down:
        yield Text(f"Down: {', '.join(down)}", style="red")
    for shard in troubled:
        what = "takes no writes" if shard["up"] else "is unavailable"
        where = f"Shard {shard['id']} on {shard['node']}"
        yield Text(f"{where} {what}: {printable(str(shard['trouble']))}", style="yellow" if shard["up"] else "red")
    if held := answer.get("deletion_holds"):
        yield Text(f"Deletions are held ({printable(', '.join(map(str, held)))}); see holdfast gc status", style="red")
    for one in answer.get("partition_suspicions", ()):
        peer, kind = printable(str(one["peer"])), str(one["kind"])
        if kind == "unreachable" and peer in down:
            continue  # it was looked at when it was not yet down
        words = "is up but not reached from the node asked" if kind == "unreachable" else "is reached but does not beat"
        yield Text(f"A partition? {peer} {words}.", style="yellow")
    if reason := answer.get("read_only_reason"):
        yield Text(f"Read-only: {printable(str(reason))}; see holdfast cluster read-only", style="yellow")
    if "primary" in answer and answer["primary"] is None:
        yield Text("No node is the primary just now: one is elected within seconds.", style="yellow")


def zones_table(answer: dict[str, Any]) -> Table:
    table = new_table("Zones")
    table.add_column("Zone", overflow="fold")
    for name in ("Nodes up", "Shards up", "Replicas", "Free", "Capacity"):
        table.add_column(name, justify="right", no_wrap=True)
    for zone in sorted({str(row["zone"]) for row in (*answer["nodes"], *answer["shards"])}):
        nodes = [node for node in answer["nodes"] if node["zone"] == zone]
        shards = [shard for shard in answer["shards"] if shard["zone"] == zone]
        table.add_row(
            Text(printable(zone)),
            share(sum(node["up"] for node in nodes), len(nodes)),
            share(sum(shard["up"] for shard in shards), len(shards)),
            f"{sum(shard['replicas'] for shard in shards):,}",
            say_bytes(sum(shard["free_bytes"] or 0 for shard in shards)),
            say_bytes(sum(shard["capacity_bytes"] or 0 for shard in shards)),
        )
    return table


def share(part: int, whole: int) -> Text:
    return Text(f"{part} of {whole}", style="" if part == whole else "red")


def nodes_table(nodes: list[dict[str, Any]]) -> Table:
    table = new_table("Nodes")
    table.add_column("Node", overflow="fold")
    table.add_column("Zone", overflow="fold")
    table.add_column("State", no_wrap=True)
    table.add_column("Heartbeat", justify="right", no_wrap=True)
    table.add_column("Version", overflow="fold")
    table.add_column("URL", overflow="fold")
    for node in nodes:
        age = node.get("heartbeat_age_seconds")
        table.add_row(
            Text(printable(str(node["id"]))),
            Text(printable(str(node["zone"]))),
            node_state(node),
            "never" if age is None else f"{say_seconds(age)} ago",
            node_release(node),
            Text(printable(str(node["url"]))),
        )
    return table


def shards_table(shards: list[dict[str, Any]], *, is_wide: bool) -> Table:
    table = new_table("Shards")
    table.add_column("Id", justify="right", no_wrap=True)
    table.add_column("Zone", overflow="fold")
    table.add_column("Node", overflow="fold")
    table.add_column("State", overflow="fold")
    table.add_column("Replicas", justify="right", no_wrap=True)
    table.add_column("Free", justify="right", no_wrap=True)
    table.add_column("Capacity", justify="right", no_wrap=True)
    table.add_column("Weight", justify="right", no_wrap=True)
    if is_wide:
        table.add_column("Path", no_wrap=True)
    for shard in shards:
        table.add_row(
            str(shard["id"]),
            Text(printable(str(shard["zone"]))),
            Text(printable(str(shard["node"]))),
            shard_state(shard),
            f"{shard['replicas']:,}",
            "?" if shard["free_bytes"] is None else say_bytes(shard["free_bytes"]),
            "?" if shard["capacity_bytes"] is None else say_bytes(shard["capacity_bytes"]),
            f"{shard['weight']:g}",
            *([Text(printable(str(shard["path"])))] if is_wide else []),
        )
    return table


def shard_state(shard: dict[str, Any]) -> Text:
    """Return the state in words: what the administrator says of the shard, then what is wrong with it."""
    state = printable(str(shard["state"]))
    if not shard["up"]:
        return Text(f"{state}, down", style="red")
    if shard["state"] == "active" and not shard["writable"]:
        return Text(f"{state}, no writes", style="yellow")
    return Text(state, style="green" if state == "active" else "yellow")
