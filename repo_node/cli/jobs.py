"""The maintenance jobs: how they stand, and a run right now."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from repo_node.cli.calls import CALL_RETRY, check_answer, failure_of, run_call, say_wait
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable, say_bytes, say_seconds
from repo_node.client.errors import ClientError
from repo_node.client.rest import Client, Endpoint

JOBS_PATH = "/api/holdfast/jobs"
POLL_SECONDS = 0.5
LINE_SECONDS = 10.0
STYLES = {"running": "cyan", "idle": "green", "failed": "red", "disabled": "yellow"}

Row = dict[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@connection_options
def jobs(connection: ConnectionOptions, as_json: bool) -> None:
    """Show the maintenance jobs of every node, what they did last and how far they are.

    Jobs run by themselves; their rates and pauses are settings. A job that failed tries again by itself.

    \b
    Examples:
      holdfast jobs
      holdfast jobs --json | jq '.jobs[] | select(.state == "failed")'
    """
    answer = run_call(connection, lambda client: client.call("GET", JOBS_PATH), "jobs")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        new_console().print(table_of("Jobs", answer["jobs"]))


@click.command("run-once")
@click.argument("job", metavar="JOB")
@click.option("--node", metavar="NODE", help="On this node alone. [default: on every living node]")
@click.option("--json", "as_json", is_flag=True, help="Print the jobs as they ended as JSON.")
@connection_options
def run_once(connection: ConnectionOptions, job: str, node: str | None, as_json: bool) -> None:
    """Let JOB run now, and wait until every node asked has finished a run that began after this.

    Ctrl-C ends the waiting, not the run. Exit status 1 when a run failed.

    \b
    Examples:
      holdfast run-once repair
      holdfast run-once repair --node node-2
    """
    endpoint = find_endpoint(connection)
    try:
        ended = asyncio.run(wait_for_runs(endpoint, job, node))
    except ClientError as error:
        raise failure_of(error, connection, endpoint) from None
    if as_json:
        click.echo(json.dumps({"jobs": ended}, indent=2))
    else:
        new_console().print(table_of(f"{job}, as it ended", ended))
    if any(row["state"] == "failed" or not row["node_up"] for row in ended):
        raise click.exceptions.Exit(1)


async def wait_for_runs(endpoint: Endpoint, job: str, node: str | None) -> list[Row]:
    """Ask for the runs, show them until each has ended or its node is down, and return how they ended."""
    async with Client(endpoint, retry=CALL_RETRY, on_wait=say_wait) as client:
        answer = await client.call("POST", f"{JOBS_PATH}/{quote(job, safe='')}/run", body={"node": node})
        asked = {one["node"]: one["requested_at"] for one in check_answer(endpoint, answer, ("nodes",))["nodes"]}
        board = Board(job)
        with board:
            while True:
                listed = check_answer(endpoint, await client.call("GET", JOBS_PATH), ("jobs",))["jobs"]
                rows = [row for row in listed if row["job"] == job and row["node"] in asked]
                if all(has_ended(row, asked[row["node"]]) for row in rows):
                    return rows
                board.show(rows)
                await asyncio.sleep(POLL_SECONDS)


def has_ended(row: Row, requested_at: str) -> bool:
    """Say whether a run that began after ``requested_at`` is over, or will never be. The texts compare as times."""
    return not row["node_up"] or (row["answered_at"] is not None and str(row["answered_at"]) >= requested_at)


class Board:
    """Shows runs under way on standard error: live on a terminal, else a line now and then."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._live = Live(console=new_console(stderr=True), transient=True) if sys.stderr.isatty() else None
        self._silent_seconds = 0.0

    def __enter__(self) -> None:
        (self._live or nullcontext()).__enter__()

    def __exit__(self, *error: Any) -> None:
        (self._live or nullcontext()).__exit__(*error)

    def show(self, rows: list[Row]) -> None:
        if self._live is not None:
            self._live.update(table_of(self._job, rows))
            return
        self._silent_seconds += POLL_SECONDS
        if self._silent_seconds >= LINE_SECONDS:
            self._silent_seconds = 0.0
            for row in rows:
                click.echo(printable(f"{row['node']}: {self._job} {row['state']}, {say_progress(row)}"), err=True)


def table_of(title: str, rows: list[Row]) -> Table:
    table = new_table(title)
    table.add_column("Job", overflow="fold")
    table.add_column("Node", overflow="fold")
    table.add_column("State", no_wrap=True)
    table.add_column("Done", justify="right", overflow="fold")
    table.add_column("Moved", justify="right", no_wrap=True)
    table.add_column("Last run", justify="right", no_wrap=True)
    for row in rows:
        age = row["finished_age_seconds"]
        state = str(row["state"]) if row["node_up"] else "down"
        table.add_row(
            Text(printable(str(row["job"]))),
            Text(printable(str(row["node"]))),
            Text(printable(state), style=STYLES.get(state, "red")),
            say_progress(row),
            say_bytes(row["moved_bytes"]),
            "never" if age is None else f"{say_seconds(age)} ago",
        )
        if row["last_error"]:
            table.add_row("", "", Text(printable(str(row["last_error"])), style="red", overflow="fold"))
    return table


def say_progress(row: Row) -> str:
    """Return how far a job is and when it will be done, as far as that can be said."""
    text = f"{row['done']:,}" if row["total"] is None else f"{row['done']:,} of {row['total']:,}"
    return text if row["seconds_left"] is None else f"{text}, {say_seconds(row['seconds_left'])} left"
