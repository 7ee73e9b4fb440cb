"""The trash: list what was deleted or overwritten, bring it back, let it go for good."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.calls import run_call, say
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.tables import new_table, show
from repo_node.cli.wording import printable, say_bytes
from repo_node.client.rest import Client

LIST_PATH = "/api/holdfast/trash"
TRASH_PATH = "/api/trash"


@click.group()
def trash() -> None:
    """List, restore and let go of what was deleted or overwritten.

    Artifacts stay in the trash for `trash_days`; a repository made with "trash": false keeps none.

    \b
    Examples:
      holdfast trash list generic-local/app
      holdfast trash restore generic-local/app/1.0/app.tgz
    """


@trash.command("list")
@click.argument("path", metavar="[REPOSITORY[/PATH]]", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="The most to show.")
@click.option("--json", "as_json", is_flag=True, help="Print the items as JSON.")
@connection_options
def list_trash(connection: ConnectionOptions, path: str | None, limit: int, as_json: bool) -> None:
    """List the trash, or what of it was at or below a path.

    \b
    Example:
      holdfast trash list generic-local/app --json
    """
    items, more = run_call(connection, lambda client: read_trash(client, path, limit))
    if as_json:
        click.echo(json.dumps({"items": items, "more": more}, indent=2))
    elif items:
        show(table_of(items))
    else:
        click.echo("The trash is empty there.")
    if more and not as_json:
        click.echo(f"These are the first {limit}: there are more, which --limit shows.", err=True)


async def read_trash(client: Client, path: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Return up to ``limit`` items, page by page, and whether there are more."""
    found: list[dict[str, Any]] = []
    more: dict[str, str] | None = {}
    while more is not None and len(found) <= limit:
        query = urlencode({**({} if path is None else {"path": path}), **more})
        page = await client.call("GET", f"{LIST_PATH}?{query}")
        found += page["items"]
        more = page["next"]
    return found[:limit], len(found) > limit


def table_of(items: list[dict[str, Any]]) -> Table:
    table = new_table("Trash")
    table.add_column("Path", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Why", no_wrap=True)
    table.add_column("When", no_wrap=True)
    table.add_column("Who", overflow="fold")
    for item in items:
        table.add_row(
            Text(printable(f"{item['repository']}/{item['path']}")),
            say_bytes(int(item["size"])),
            Text(printable(str(item["reason"]))),
            Text(printable(str(item["trashed_at"])[:16].replace("T", " "))),
            Text(printable(str(item["trashed_by"]))),
        )
    return table


@trash.command("restore")
@click.argument("path", metavar="REPOSITORY/PATH")
@click.option("--to", metavar="REPOSITORY/PATH", help="Where to. [default: where it was]")
@click.option("--replace", is_flag=True, help="Over what is in a folder's places, or was restored before.")
@connection_options
def restore(connection: ConnectionOptions, path: str, to: str | None, replace: bool) -> None:
    """Bring back an artifact as it was when it was last thrown away, or everything that was deleted from a folder.

    An artifact that is in its place now goes to the trash itself. A repeated restore changes nothing: what was restored
    before stays, unless --replace puts the next version over it. Of a folder, each path gets the version that was
    deleted last, and only where nothing is now; an overwritten version comes back by its own path.

    \b
    Examples:
      holdfast trash restore generic-local/app/1.0/app.tgz
      holdfast trash restore generic-local/app --to generic-local/app-restored
    """
    query = urlencode({**({} if to is None else {"to": to}), "replace": int(replace)})
    target = f"{TRASH_PATH}/restore/{quote(path.strip('/'))}?{query}"
    click.echo(printable(run_call(connection, lambda client: say(client, "POST", target))))


@trash.command("empty")
@click.argument("path", metavar="[REPOSITORY[/PATH]]", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
def empty(connection: ConnectionOptions, path: str | None, yes: bool) -> None:
    """Let go of the trash for good, or of what was at and below a path.

    Content that nothing else refers to is then removed by garbage collection after its grace.

    \b
    Example:
      holdfast trash empty generic-local/app --yes
    """
    if not yes:
        click.confirm(f"Let go of {path or 'the whole trash'} for good?", abort=True)
    if path is None:
        text = run_call(connection, lambda client: say(client, "POST", f"{TRASH_PATH}/empty"))
    else:
        target = f"{TRASH_PATH}/clean/{quote(path.strip('/'))}"
        text = run_call(connection, lambda client: say(client, "DELETE", target))
    click.echo(printable(text))
