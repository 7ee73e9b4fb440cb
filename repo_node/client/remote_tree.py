"""Which artifacts a download takes, and where each of them goes on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_node.client.errors import BadAnswer, ClientError
from repo_node.client.local_tree import Unfit
from repo_node.client.paths import PathError, RemotePath
from repo_node.client.rest import Client


@dataclass(frozen=True, slots=True)
class DownloadItem:
    """One artifact, the file it becomes, and the part file it grows in."""

    source: RemotePath
    destination: Path
    part_path: Path


@dataclass(frozen=True, slots=True)
class Folder:
    """The names in a folder: of folders, and of files."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for, and the name it gets here: one if it turns out to be a file, one if a folder."""

    source: RemotePath
    file_path: Path
    folder_path: Path


async def find_all(client: Client, wishes: Sequence[Wish]) -> AsyncIterator[DownloadItem | Unfit]:
    """Yield everything that ``wishes`` name, each once; an artifact for the file of another one is unfit."""
    taken: dict[Path, RemotePath] = {}
    siblings = {wish.file_path.name for wish in wishes}
    for wish in wishes:
        try:
            async for found in find_artifacts(client, wish, siblings):
                if not isinstance(found, DownloadItem) or found.destination not in taken:
                    yield found
                elif taken[found.destination] != found.source:
                    first = taken[found.destination]
                    reason = f"{first} already goes to {found.destination}; download it to another directory"
                    yield Unfit(str(found.source), reason)
                if isinstance(found, DownloadItem):
                    taken.setdefault(found.destination, found.source)
        except ClientError as error:
            yield Unfit(str(wish.source), str(error))
            if error.stops_all:
                return


async def find_artifacts(
    client: Client, wish: Wish, siblings: Collection[str] = ()
) -> AsyncIterator[DownloadItem | Unfit]:
    """Yield the artifact of ``wish``, or everything in its folder; ``siblings`` are the names beside a file.

    Raises ``ClientError`` when it cannot be asked for; a folder further down is unfit then.
    """
    top = await find_folder(client, wish.source)
    if top is None:
        yield DownloadItem(wish.source, wish.file_path, part_path_of(wish.file_path, siblings))
        return
    waiting = [(wish.source, wish.folder_path, top)]
    while waiting:
        place, directory, folder = waiting.pop()
        for found in folder_files(place, directory, folder):
            yield found
        for name in reversed(folder.folders):
            try:
                inner = place / name
                listed = await find_folder(client, inner)
            except (PathError, ClientError) as error:
                if isinstance(error, ClientError) and error.stops_all:
                    raise
                yield Unfit(f"{place}/{name}", str(error))
            else:
                if listed is not None:
                    waiting.append((inner, directory / name, listed))


def folder_files(place: RemotePath, directory: Path, folder: Folder) -> Iterator[DownloadItem | Unfit]:
    """Yield the files of one folder; a name that could leave ``directory`` is unfit."""
    siblings = {*folder.files, *folder.folders}
    for name in folder.files:
        try:
            source = place / name
        except PathError as error:
            yield Unfit(f"{place}/{name}", str(error))
        else:
            destination = directory / name
            yield DownloadItem(source, destination, part_path_of(destination, siblings))


async def find_folder(client: Client, place: RemotePath) -> Folder | None:
    """Return what is in the folder at ``place``, or None when there is a file. Raises ``ClientError``."""
    info: Any = await client.call("GET", f"/api/storage{place.url_path}")
    try:
        if "children" not in info:
            return None
        children = [(str(child["uri"]).removeprefix("/"), bool(child["folder"])) for child in info["children"]]
    except (LookupError, TypeError):
        raise BadAnswer(f"the server's listing of {place} is not readable; is it a Holdfast cluster?") from None
    return Folder(
        tuple(sorted(name for name, is_folder in children if is_folder)),
        tuple(sorted(name for name, is_folder in children if not is_folder)),
    )


def part_path_of(destination: Path, siblings: Collection[str]) -> Path:
    """Return the name ``destination`` has until it is complete: ``<name>.part``, unless a sibling is called so."""
    name = f"{destination.name}.part"
    number = 1
    while name in siblings or f"{name}.etag" in siblings:
        name = f"{destination.name}.{number}.part"
        number += 1
    return destination.with_name(name)
