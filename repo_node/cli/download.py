"""``holdfast download``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from repo_node.cli.connection import ConnectionOptions, find_endpoint
from repo_node.cli.progress import Board, open_board
from repo_node.cli.report import Report
from repo_node.cli.transfer import TransferOptions, read_remote, transfer_options
from repo_node.cli.wording import say_bytes
from repo_node.client.batch import run_batch
from repo_node.client.download import FileDownload
from repo_node.client.errors import ClientError
from repo_node.client.local_tree import Unfit
from repo_node.client.remote_tree import DownloadItem, Wish, find_all
from repo_node.client.rest import Client


@click.command()
@click.argument("sources", metavar="REPO/PATH...", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    metavar="DEST",
    default=".",
    help="A directory, or for one file its new name; a slash at the end makes it a directory. Default: here.",
)
@transfer_options
def download(connection: ConnectionOptions, options: TransferOptions, sources: tuple[str, ...], output: str) -> None:
    """Download files and folders.

    A folder comes with all it holds, under its own name; written REPO/DIR/. it gives only its contents.

    A file grows as NAME.part, is verified by its sha256, and only then gets its name, replacing an older file. The
    same command again goes on where a broken one ended. What fails is listed at the end, with exit status 1.

    \b
    Examples:
      holdfast download generic-local/app/1.0/app.tgz
      holdfast download generic-local/app/1.0/app.tgz -o /tmp/app.tgz
      holdfast download generic-local/app -o backup/
    """
    wishes = [read_wish(source, output, alone=len(sources) == 1) for source in sources]
    client = Client(find_endpoint(connection), retry=options.retry, connections_max=options.jobs)
    report = Report("downloaded")
    with open_board("downloading", quiet=options.quiet, as_json=options.as_json) as board:
        asyncio.run(download_all(client, wishes, options.jobs, board, report))
    report.close(as_json=options.as_json)


def read_wish(source: str, output: str, *, alone: bool) -> Wish:
    """Return what one REPO/PATH asks for and the names it can get. Raises ``click.UsageError``."""
    contents_only = source.endswith("/.")
    place = read_remote(source.removesuffix("/."))
    directory = Path(output)
    renames = alone and not output.endswith("/") and not directory.is_dir()
    return Wish(
        place,
        file_path=directory if renames else directory / place.name,
        folder_path=directory if contents_only else directory / place.name,
    )


async def download_all(client: Client, wishes: Sequence[Wish], jobs: int, board: Board, report: Report) -> None:
    """Download what is wished for, ``jobs`` files at a time; the report says how it went."""

    async def work(item: DownloadItem | Unfit) -> bool:
        if isinstance(item, Unfit):
            board.fail(None, report.add_failure(item.name, item.reason))
            return True
        return await download_one(client, item, board, report)

    async with client:
        complete = await run_batch(find_all(client, wishes), jobs, work)
    report.stopped = not complete


async def download_one(client: Client, item: DownloadItem, board: Board, report: Report) -> bool:
    """Download one artifact and report it; False when every other download would fail alike."""
    name = str(item.source)
    watcher = board.open(name, None)
    try:
        received = await FileDownload(client, item.source, item.destination, item.part_path, watcher).run()
    except ClientError as error:
        board.fail(watcher, report.add_failure(name, str(error)))
        return not error.stops_all
    report.add(
        path=name,
        target=str(item.destination),
        bytes=received.size,
        sha256=received.sha256,
        resumed_at_bytes=received.resumed_at_bytes,
        attempts=received.attempts,
    )
    board.finish(watcher, f"{name} -> {item.destination}, {say_bytes(received.size)}")
    return True
