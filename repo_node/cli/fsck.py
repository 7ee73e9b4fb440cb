"""Compare the shards with the database: what is missing, what is too much, what does not belong there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.calls import CALL_RETRY, check_answer, failure_of, say_wait
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.tables import new_table, show
from repo_node.cli.wording import printable, say_count
from repo_node.client.errors import ClientError
from repo_node.client.rest import Client, Endpoint

FSCK_PATH = "/api/holdfast/fsck"
POLL_SECONDS = 0.5
LINE_SECONDS = 10.0

MEANINGS = {
    "missing": "files that are missing",
    "wrong_size": "files of the wrong size",
    "stray": "files that the database does not know",
    "returned": "files that had been set aside",
    "temp": "left-over temporary files",
    "adopted": "copies that the database did not know",
    "found": "blobs that the database did not know",
    "wrong_name": "replicas under a wrong name",
    "foreign": "foreign files",
    "link": "symbolic links",
}
DEEDS = {
    "missing": "queued for repair",
    "wrong_size": "to be judged",
    "stray": "set aside",
    "returned": "set aside",
    "temp": "set aside",
    "adopted": "entered",
    "found": "entered",
    "wrong_name": "set aside",
    "foreign": "set aside",
    "link": "set aside",
}

Row = dict[str, Any]


@click.command()
@click.option("--shard", type=click.IntRange(min=1), metavar="ID", help="This shard alone. [default: every shard]")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what a real run would do.")
@click.option("--repair", is_flag=True, help="Also set aside what the cluster did not put there.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@connection_options
def fsck(connection: ConnectionOptions, shard: int | None, dry_run: bool, repair: bool, as_json: bool) -> None:
    """Compare the shards with the database, and mend what differs.

    Files that are missing are queued for repair, files of the wrong size are read again and judged, files that the
    database does not know and left-over temporary files go to the shard's quarantine once they have been seen for
    longer than an upload may take. Foreign files and links are only told, unless --repair says to set them aside too.
    Nothing is deleted but what was set aside quarantine_seconds ago. The cluster does the same by itself once in
    reconcile_period_seconds.

    Ctrl-C ends the waiting, not the check. Exit status 1 when a shard could not be checked.

    \b
    Examples:
      holdfast fsck --dry-run
      holdfast fsck --shard 3 --repair
      holdfast fsck --json | jq '.checks[].report.findings'
    """
    if dry_run and repair:
        raise click.UsageError("a dry run repairs nothing; give one of --dry-run and --repair")
    order = {"shard": shard, "dry_run": dry_run, "repair": repair}
    show_checks(connection, order, as_json=as_json, dry_run=dry_run)


def show_checks(connection: ConnectionOptions, order: Row, *, as_json: bool, dry_run: bool) -> None:
    """Order checks, wait for them and show what they found."""
    endpoint = find_endpoint(connection)
    try:
        answer, unreached = asyncio.run(wait_for_checks(endpoint, order))
    except ClientError as error:
        raise failure_of(error, connection, endpoint) from None
    if as_json:
        click.echo(json.dumps({"checks": answer, "unreached": unreached}, indent=2))
    else:
        show(table_of(answer, dry_run=dry_run))
        click.echo("\n".join(summary_lines(answer, unreached, dry_run=dry_run)))
    if unreached or any(row["error"] or row["finished_at"] is None for row in answer):
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@connection_options
def rebuild(connection: ConnectionOptions, as_json: bool) -> None:
    """After a restore: enter what the shards hold and the backup does not know.

    Every file that no row knows is read whole. More copies of known blobs count again; blobs that came after the
    backup are entered and listed by their sha256 - their paths are lost, upload them again or leave them to garbage
    collection, which stays held until you release it. Needs a restored database whose deletions are still held.

    \b
    Example:
      holdfast rebuild
    """
    show_checks(connection, {"rebuild": True}, as_json=as_json, dry_run=False)


async def wait_for_checks(endpoint: Endpoint, order: Row) -> tuple[list[Row], list[int]]:
    """Order the checks, and return them when each is finished or its node is down; and the shards left out."""
    async with Client(endpoint, retry=CALL_RETRY, on_wait=say_wait) as client:
        ordered = check_answer(endpoint, await client.call("POST", FSCK_PATH, body=order), ("request", "unreached"))
        silent_seconds = 0.0
        while True:
            answer = await client.call("GET", f"{FSCK_PATH}/{ordered['request']}")
            rows: list[Row] = check_answer(endpoint, answer, ("checks",))["checks"]
            if all(row["finished_at"] is not None or not row["node_up"] for row in rows):
                return rows, ordered["unreached"]
            await asyncio.sleep(POLL_SECONDS)
            silent_seconds += POLL_SECONDS
            if silent_seconds >= LINE_SECONDS:
                silent_seconds = 0.0
                click.echo(say_progress(rows), err=True)


def say_progress(rows: list[Row]) -> str:
    finished = sum(row["finished_at"] is not None for row in rows)
    compared = sum(row["done"] for row in rows)
    return f"{finished} of {say_count(len(rows), 'shard')} checked, {say_count(compared, 'file')} compared"


def table_of(rows: list[Row], *, dry_run: bool) -> Table:
    table = new_table("Dry run" if dry_run else "Check")
    for name in ("Shard", "Files"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Found", overflow="fold")
    for row in rows:
        lines = list(finding_lines(row, dry_run=dry_run))
        files = (row["report"] or {}).get("files", 0)
        table.add_row(str(row["shard"]), f"{files:,}", Text("\n".join(map(printable, lines))))
    return table


def finding_lines(row: Row, *, dry_run: bool) -> list[str]:
    """Return a line for each kind of finding on one shard."""
    if row["finished_at"] is None:
        return [f"not checked: node {row['node']} went down"]
    lines = [f"not checked to its end: {row['error']}"] if row["error"] else []
    for kind, count in row["report"].get("findings", {}).items():
        deed, left = DEEDS.get(kind, "dealt with"), count["found"] - count["acted"]
        would = "would be " if dry_run and deed != "to be judged" else ""
        parts = [
            (count["found"], "found"),
            (count["acted"], f"{would}{deed}"),
            (left, "left alone"),
            (count["waiting"], "too young to touch"),
        ]
        lines.append(f"{MEANINGS.get(kind, kind)}: " + ", ".join(f"{n:,} {what}" for n, what in parts if n))
    lines += [f"  {one['finding']}: {one['what']}" for one in row["report"].get("examples", [])]
    if unlisted := row["report"].get("unlisted", 0):
        lines.append(f"{unlisted:,} more strange things than a report lists: deal with these, then check again")
    return lines or ["nothing"]


def summary_lines(rows: list[Row], unreached: list[int], *, dry_run: bool) -> list[str]:
    found = sum(count["found"] for row in rows for count in (row["report"] or {}).get("findings", {}).values())
    whole = [row for row in rows if row["finished_at"] is not None and not row["error"]]
    lines = [f"{say_count(found, 'finding')}; {len(whole)} of {say_count(len(rows), 'shard')} checked to the end."]
    if dry_run and found:
        lines.append("Nothing was changed; run the same without --dry-run.")
    if unreached:
        lines.append(f"Not checked, because no living node has them open: shards {', '.join(map(str, unreached))}.")
    return lines
