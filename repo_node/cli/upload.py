"""``holdfast upload``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import click

from repo_node.cli.connection import ConnectionOptions, find_endpoint
from repo_node.cli.progress import Board, open_board
from repo_node.cli.report import Report
from repo_node.cli.transfer import TransferOptions, read_remote, transfer_options
from repo_node.cli.wording import printable, say_bytes
from repo_node.client.batch import run_batch
from repo_node.client.errors import ClientError
from repo_node.client.local_tree import Found, Unfit, UploadItem, find_entry, find_files
from repo_node.client.paths import RemotePath
from repo_node.client.rest import Client
from repo_node.client.upload import KNOWN_BYTES_MIN, FileUpload


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.argument("target", metavar="REPO/DIR/")
@click.option(
    "--known-bytes-min",
    type=click.IntRange(min=0),
    default=KNOWN_BYTES_MIN,
    show_default=True,
    help="From this size on, ask first whether the cluster has the content already, and send nothing if it has.",
)
@transfer_options
def upload(
    connection: ConnectionOptions, options: TransferOptions, paths: tuple[str, ...], target: str, known_bytes_min: int
) -> None:
    """Upload files and directories into a folder of a repository.

    A directory goes up with all it holds, under its own name; written DIR/. it gives only its contents. Links are
    followed, empty directories left out. For one file, REPO/DIR/NAME without a slash at the end is its exact place.

    Checksums are declared before and compared after. An artifact that has the same path is replaced. What fails is
    listed at the end, with exit status 1.

    \b
    Examples:
      holdfast upload app.tgz generic-local/app/1.0/
      holdfast upload dist/. docs generic-local/app/1.0/
      holdfast upload --jobs 8 --json wheels generic-local/ | jq .failed
    """
    place = read_remote(target)
    exact = bool(place.segments) and not target.endswith("/")
    if exact and (len(paths) > 1 or os.path.isdir(paths[0])):
        raise click.UsageError(f"{printable(target)} must end with a slash to be a folder: {printable(target)}/")
    client = Client(find_endpoint(connection), retry=options.retry, connections_max=options.jobs)
    report = Report("uploaded")
    with open_board("uploading", quiet=options.quiet, as_json=options.as_json) as board:
        planned = plan_upload(paths, place, exact)
        asyncio.run(upload_all(client, planned, options.jobs, board, report, known_bytes_min=known_bytes_min))
    report.close(as_json=options.as_json)


def plan_upload(paths: Sequence[str], place: RemotePath, exact: bool) -> list[Found]:
    """Return every file under ``paths`` with its place: in ``place``, or ``place`` itself where that is ``exact``."""
    return list(find_entry(Path(paths[0]), place, ()) if exact else find_files(paths, place))


async def upload_all(
    client: Client, found: Sequence[Found], jobs: int, board: Board, report: Report, *, known_bytes_min: int
) -> None:
    """Upload what was found, ``jobs`` files at a time; the report says how it went."""
    items = [item for item in found if isinstance(item, UploadItem)]
    board.expect(sum(item.size for item in items))
    for unfit in found:
        if isinstance(unfit, Unfit):
            board.fail(None, report.add_failure(unfit.name, unfit.reason))

    async def work(item: UploadItem) -> bool:
        return await upload_one(client, item, board, report, known_bytes_min)

    async with client:
        await run_batch(iterate(items), jobs, work)
    report.untried = len(found) - len(report.done) - len(report.failed)


async def iterate(items: Sequence[UploadItem]) -> AsyncIterator[UploadItem]:
    for item in items:
        yield item


async def upload_one(client: Client, item: UploadItem, board: Board, report: Report, known_bytes_min: int) -> bool:
    """Upload one file and report it; False when every other upload would fail alike."""
    name = str(item.source)
    watcher = board.open(name, item.size)
    try:
        upload = FileUpload(client, item.source, item.target, watcher, known_bytes_min=known_bytes_min)
        stored = await upload.run()
    except ClientError as error:
        board.fail(watcher, report.add_failure(name, str(error)))
        return not error.stops_all
    report.add(
        path=name,
        target=str(item.target),
        bytes=stored.size,
        sha256=stored.sha256,
        uri=stored.uri,
        attempts=stored.attempts,
        known=stored.known,
    )
    how = ", known already" if stored.known else ""
    board.finish(watcher, f"{name} -> {item.target}, {say_bytes(stored.size)}{how}")
    return True
