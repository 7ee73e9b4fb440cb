"""Support bundles: one archive of what helps to find out what is wrong with a cluster, without its secrets."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiofiles
import click
from rich.status import Status
from rich.text import Text

from repo_node.cli.calls import CALL_RETRY, check_answer, failure_of, run_call, say_wait
from repo_node.cli.connection import ConnectionOptions, connection_options, find_endpoint
from repo_node.cli.tables import new_console, new_table, show
from repo_node.cli.wording import printable, say_bytes
from repo_node.client.errors import ClientError, LocalFailure
from repo_node.client.rest import PIECE_BYTES, Client, Endpoint

SUPPORT_PATH = "/api/system/support"
POLL_SECONDS = 0.3
STYLES = {"success": "green", "in progress": "cyan", "failed": "red"}

Bundle = dict[str, Any]


@click.group()
def support() -> None:
    """Make, list and fetch support bundles.

    A bundle holds the configuration of every node, the cluster's settings, shards, jobs and holds, the last lines of
    the logs, metrics, stacks, and what Postgres says of itself. Passwords, keys and tokens are not in it; paths, names
    of repositories and what the logs say are. A node that does not answer is said in it.

    \b
    Example:
      holdfast support bundle
    """


@support.command()
@click.option(
    "--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Default: holdfast-support-ID.zip, here."
)
@click.option("--name", default="", help="What it is called in lists.")
@click.option("--description", default="", help="What it is for.")
@click.option("--no-logs", is_flag=True, help="Leave the logs out.")
@click.option("--since", metavar="DAY", help="Logs from this day on, as 2026-07-31, in UTC. [default: of 24 hours]")
@click.option("--dumps", type=click.IntRange(0, 10), default=1, show_default=True, help="How often stacks are dumped.")
@connection_options
def bundle(
    connection: ConnectionOptions,
    output: Path | None,
    name: str,
    description: str,
    no_logs: bool,
    since: str | None,
    dumps: int,
) -> None:
    """Make a bundle, wait for it, and fetch it.

    \b
    Examples:
      holdfast support bundle
      holdfast support bundle -o /tmp/for-support.zip --description "slow uploads since noon"
    """
    logs = {"include": not no_logs, **({"start_date": since} if since else {})}
    parameters = {"logs": logs, "thread_dump": {"count": dumps, "interval": 500}}
    order = {"name": name, "description": description, "parameters": parameters}
    fetch(connection, lambda client, show: make(client, order, show), output)


@support.command()
@click.argument("identity", metavar="ID")
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="As for bundle.")
@connection_options
def download(connection: ConnectionOptions, identity: str, output: Path | None) -> None:
    """Fetch a bundle that was made before."""
    fetch(connection, lambda client, show: wait_for(client, identity, show), output)


@support.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@connection_options
def list_bundles(connection: ConnectionOptions, as_json: bool) -> None:
    """List the bundles that are kept: the last few (`support_bundles_kept`)."""
    answer = run_call(connection, lambda client: client.call("GET", f"{SUPPORT_PATH}/bundles"), "bundles")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    table = new_table("Support bundles")
    for column in ("Id", "Name", "Created", "By", "State", "Size"):
        table.add_column(column)
    for one in answer["bundles"]:
        texts = [printable(str(one[key])) for key in ("id", "name", "created", "created_by")]
        state = Text(printable(one["status"]), style=STYLES.get(one["status"], ""))
        table.add_row(*map(Text, texts), state, "" if one["bytes"] is None else say_bytes(one["bytes"]))
    show(table)


@support.command()
@click.argument("identity", metavar="ID")
@connection_options
def delete(connection: ConnectionOptions, identity: str) -> None:
    """Let go of a bundle on the server."""
    run_call(connection, lambda client: client.call("DELETE", path_of(identity)))
    click.echo(f"Deleted {printable(identity)}.")


Show = Callable[[str], None]


def fetch(connection: ConnectionOptions, find: Callable[[Client, Show], Any], output: Path | None) -> None:
    """Write the bundle that ``find`` waits for to a file, and say where. Raises ``click.ClickException``."""
    if output is not None and not output.parent.is_dir():
        raise click.ClickException(f"There is no directory {printable(str(output.parent))}: make it, or name another.")
    endpoint = find_endpoint(connection)
    try:
        target, size = asyncio.run(run_fetch(endpoint, find, output))
    except ClientError as error:
        raise failure_of(error, connection, endpoint) from None
    click.echo(f"{printable(str(target))}, {say_bytes(size)}. Look through it before you give it away.")


async def run_fetch(endpoint: Endpoint, find: Callable[[Client, Show], Any], output: Path | None) -> tuple[Path, int]:
    with Board() as board:
        async with Client(endpoint, retry=CALL_RETRY, on_wait=say_wait) as client:
            found: Bundle = await find(client, board.show)
            target = output or Path(f"holdfast-support-{Path(str(found['id'])).name}.zip")
            return target, await save(client, str(found["id"]), target, board.show)


async def make(client: Client, order: dict[str, Any], show: Show) -> Bundle:
    """Order a bundle, and return it when it is ready. Raises ``ClientError``, ``click.ClickException``."""
    answer = await client.call("POST", f"{SUPPORT_PATH}/bundle", body=order, idempotent=False)
    return await wait_for(client, str(check_answer(client.endpoint, answer, ("id",))["id"]), show)


async def wait_for(client: Client, identity: str, show: Show) -> Bundle:
    """Return a bundle when it is ready. Raises ``ClientError``, and ``click.ClickException`` for one that failed."""
    while True:
        answer = await client.call("GET", path_of(identity))
        found: Bundle = check_answer(client.endpoint, answer, ("id", "status", "doing", "done", "total"))
        if found["status"] == "success":
            return found
        if found["status"] == "failed":
            raise click.ClickException(printable(f"the bundle {identity} could not be made: {found['doing']}"))
        show(f"{found['doing'] or 'beginning'} ({found['done']} of {found['total']} nodes reported)")
        await asyncio.sleep(POLL_SECONDS)


async def save(client: Client, identity: str, target: Path, show: Show) -> int:
    """Write a bundle's archive to ``target``, readable by its owner alone; return its bytes. Raises ``ClientError``."""
    part, size = target.with_name(f"{target.name}.part"), 0
    try:
        patience = client.patience()
        async with (
            client.request("GET", f"{path_of(identity)}/archive", patience=patience) as response,
            aiofiles.open(part, "wb", opener=private) as file,
        ):
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                patience.renew()
                await file.write(piece)
                size += len(piece)
                show(f"fetching it: {say_bytes(size)}")
        await asyncio.to_thread(part.replace, target)
    except OSError as error:
        raise LocalFailure.of(error, f"{target} cannot be written") from error
    return size


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def path_of(identity: str) -> str:
    return f"{SUPPORT_PATH}/bundle/{quote(identity, safe='')}"


class Board(AbstractContextManager["Board"]):
    """Shows what is being done on standard error: live on a terminal, else a line for each change."""

    def __init__(self) -> None:
        self._status = Status("", console=new_console(stderr=True)) if sys.stderr.isatty() else None
        self._last = ""

    def __enter__(self) -> Board:
        (self._status or nullcontext()).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._status or nullcontext()).__exit__(*error)

    def show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(printable(text)))
        elif text != self._last and not text.startswith("fetching"):
            click.echo(printable(text), err=True)
        self._last = text
