"""Garbage collection: run it, see what it would remove, hold and release deletions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.calls import failure_of, run_call
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.jobs import wait_for_runs
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable, say_bytes, say_count
from repo_node.client.errors import ClientError
from repo_node.client.rest import Client

GC_PATH = "/api/holdfast/gc"
SHOWN_MAX = 50
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="List what would go, and why, and remove nothing.")
@AS_JSON
@connection_options
@click.pass_context
def gc(ctx: click.Context, connection: ConnectionOptions, dry_run: bool, as_json: bool) -> None:
    """Remove content that nothing has referred to for longer than the grace.

    It runs by itself on the primary node; this runs it now and waits. Rows go at once, files by way of the
    removal list after `removal_delay_seconds`. When a run would remove implausibly much, deletions are held:
    look with --dry-run, then let them go on with `holdfast gc release`.

    \b
    Examples:
      holdfast gc --dry-run
      holdfast gc
      holdfast gc status
    """
    if ctx.invoked_subcommand is not None:
        return
    if dry_run:
        show_dry_run(run_call(connection, dry_run_of), as_json=as_json)
        return
    state = run_call(connection, lambda client: client.call("GET", GC_PATH), "holds", "primary")
    refuse_while_held(state)
    if state["primary"] is None:
        raise click.ClickException("no node is the primary just now; one is elected within seconds: try again")
    endpoint = find_endpoint(connection)
    try:
        ended = asyncio.run(wait_for_runs(endpoint, "gc", None))
    except ClientError as error:
        raise failure_of(error, connection, endpoint) from None
    if as_json:
        click.echo(json.dumps({"jobs": ended}, indent=2))
    else:
        removed = sum(int(row["done"]) for row in ended if row["state"] != "failed")
        click.echo(f"Garbage collection has run; its last run removed {say_count(removed, 'blob')}.")
    failures = [str(row["last_error"]) for row in ended if row["state"] == "failed"]
    if failures:
        raise click.ClickException(printable("; ".join(failures)))
    refuse_while_held(run_call(connection, lambda client: client.call("GET", GC_PATH), "holds"))


def refuse_while_held(state: dict[str, Any]) -> None:
    """End the command when deletions are held. Raises ``click.ClickException``."""
    if state["holds"]:
        reasons = "; ".join(str(one["detail"]) for one in state["holds"])
        raise click.ClickException(
            printable(f"deletions are held: {reasons}. Look with: holdfast gc --dry-run; then: holdfast gc release")
        )


async def dry_run_of(client: Client) -> dict[str, Any]:
    """Return every candidate, page by page, and the state."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = await client.call("GET", f"{GC_PATH}/candidates?after={after}")
        found += page["candidates"]
        after = page["next_after"]
    return {"candidates": found, **(await client.call("GET", GC_PATH))}


def show_dry_run(found: dict[str, Any], *, as_json: bool) -> None:
    going = [one for one in found["candidates"] if one["goes"]]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if found["candidates"]:
        new_console().print(table_of(found["candidates"][:SHOWN_MAX]))
    if len(found["candidates"]) > SHOWN_MAX:
        click.echo(f"and {len(found['candidates']) - SHOWN_MAX:,} more; --json lists all")
    size = sum(int(one["size"]) for one in going)
    click.echo(f"A run now would remove {say_count(len(going), 'blob')}, {say_bytes(size)}.")
    if len(going) > found["blobs_allowed"]:
        click.echo(f"That is more than the {found['blobs_allowed']:,} allowed: it would hold deletions instead.")
    for one in found["holds"]:
        click.echo(printable(f"Deletions are held: {one['detail']}"))


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = new_table("Candidates")
    table.add_column("Content", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Files", justify="right", no_wrap=True)
    table.add_column("Since", no_wrap=True)
    table.add_column("Goes", overflow="fold")
    for row in rows:
        verdict = f"{'yes' if row['goes'] else 'no'}: {row['because']} ({row['reason']})"
        table.add_row(
            Text(printable(str(row["sha256"])[:16])),
            say_bytes(int(row["size"])),
            str(row["files"]),
            Text(printable(str(row["since"])[:16].replace("T", " "))),
            Text(printable(verdict)),
        )
    return table


@gc.command("status")
@AS_JSON
@connection_options
def gc_status(connection: ConnectionOptions, as_json: bool) -> None:
    """Show the primary node, what holds deletions, and what waits to be removed.

    \b
    Example:
      holdfast gc status
    """
    state = run_call(connection, lambda client: client.call("GET", GC_PATH), "primary", "holds", "removals")
    if as_json:
        click.echo(json.dumps(state, indent=2))
        return
    primary, removals = state["primary"], state["removals"]
    where = "none just now" if primary is None else f"{primary['node']} (epoch {primary['epoch']})"
    click.echo(printable(f"Primary node: {where}"))
    click.echo(f"Listed for removal: {say_count(removals['files'], 'file')}, {say_bytes(removals['bytes'])}")
    for one in state["holds"]:
        click.echo(printable(f"Deletions are held since {one['since']} ({one['reason']}): {one['detail']}"))
    if not state["holds"]:
        click.echo("Nothing holds deletions.")


@gc.command("hold")
@click.argument("why", metavar="WHY", default="an operator wants it")
@connection_options
def gc_hold(connection: ConnectionOptions, why: str) -> None:
    """Hold every deletion of content and files until `holdfast gc release`.

    \b
    Example:
      holdfast gc hold "restoring the database"
    """
    run_call(connection, lambda client: client.call("POST", f"{GC_PATH}/hold", body={"detail": why}))
    click.echo("Deletions are held. Let them go on with: holdfast gc release")


@gc.command("release")
@connection_options
def gc_release(connection: ConnectionOptions) -> None:
    """Let deletions go on that were held: after lost history, implausible volume, a rebuild, or by an operator.

    Look first at what would go: holdfast gc --dry-run. After a hold for volume, a run may remove what was counted.

    \b
    Example:
      holdfast gc release
    """
    answer = run_call(connection, lambda client: client.call("POST", f"{GC_PATH}/release"), "released")
    reasons = ", ".join(map(str, answer["released"]))
    click.echo(printable(f"Released: {reasons}." if reasons else "Nothing held deletions."))
