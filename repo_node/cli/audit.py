"""The audit log on the command line: what changed, who asked for it, from where."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlencode

import click

from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.wording import printable
from repo_node.client.rest import Client

PATH = "/api/holdfast/audit"
PAGE = 1_000
FOLLOW_SECONDS = 2.0
Event = dict[str, Any]


@click.command()
@click.argument("path", metavar="[REPOSITORY[/PATH]]", required=False)
@click.option("--kind", "kinds", multiple=True, help="Only events of this kind, such as delete; may be repeated.")
@click.option("--principal", help="Only what this user asked for.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The most to show.")
@click.option("--follow", is_flag=True, help="Go on showing what happens, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@connection_options
def audit(
    connection: ConnectionOptions,
    path: str | None,
    kinds: Sequence[str],
    principal: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what changed, the latest last: who asked for it, from where, by which request.

    Of a path, what was done to it, below it, and to folders around it as wholes.

    \b
    Examples:
      holdfast audit generic-local/app/1.0/app.tgz --kind delete
      holdfast audit --principal ci --limit 200 --json
      holdfast audit --follow
    """
    wanted = filters(path, kinds, principal)

    async def run(client: Client) -> None:
        latest, after = await read_latest(client, wanted, limit)
        for event in latest:
            show(event, as_json)
        if not latest:
            click.echo("No such events in the log.", err=True)
        if follow:
            async for event in following(client, wanted, after):
                show(event, as_json)

    run_call(connection, run)


def filters(path: str | None, kinds: Sequence[str], principal: str | None) -> dict[str, str]:
    """Return the part of the query that says which events are wanted."""
    repository, _, rest = (path or "").strip("/").partition("/")
    named = {"kind": ",".join(kinds), "principal": principal, "repository": repository, "path": rest}
    return {name: value for name, value in named.items() if value}


async def read_latest(client: Client, wanted: dict[str, str], limit: int) -> tuple[list[Event], int]:
    """Return the last events that are wanted, the latest last, and the id of the last event of all."""
    newest = await client.call("GET", f"{PATH}?limit=1")
    after = newest["events"][0]["id"] if newest["events"] else 0
    found: list[Event] = []
    before = {"before": str(after + 1)}
    while len(found) < limit:
        query = urlencode({**wanted, **before, "limit": str(min(PAGE, limit - len(found)))})
        page = await client.call("GET", f"{PATH}?{query}")
        found += page["events"]
        if not page["more"]:
            break
        before = {"before": str(page["next"])}
    return found[::-1], after


async def following(client: Client, wanted: dict[str, str], after: int) -> AsyncIterator[Event]:
    """Yield what comes after an event, for ever."""
    while True:
        page = await client.call("GET", f"{PATH}?{urlencode({**wanted, 'after': str(after)})}")
        for event in page["events"]:
            yield event
        after = page["next"]
        if not page["more"]:
            await asyncio.sleep(FOLLOW_SECONDS)


def show(event: Event, as_json: bool) -> None:
    click.echo(json.dumps(event) if as_json else line_of(event))


def line_of(event: Event) -> str:
    """Return an event in a line: when, who, from where, what, where, and what else there is to know."""
    place = "/".join(part for part in (event["repository"], event["path"]) if part)
    words = [str(event["at"]), str(event["principal"]), event["address"] or "-", str(event["kind"]), place or "-"]
    if event["sha256"]:
        words.append(f"sha256:{event['sha256']}")
    if event["detail"]:
        words.append(json.dumps(event["detail"], ensure_ascii=False))
    return printable(" ".join(words))
