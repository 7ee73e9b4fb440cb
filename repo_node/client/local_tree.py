"""Which local files an upload takes, and where each of them goes. Everything here blocks and belongs in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from repo_node.client.paths import PathError, RemotePath


@dataclass(frozen=True, slots=True)
class UploadItem:
    """One regular file and its place in the cluster; ``size`` is what it was when it was found."""

    source: Path
    target: RemotePath
    size: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """Something that cannot be transferred, and why."""

    name: str
    reason: str


Found = UploadItem | Unfit


def find_files(sources: Sequence[str], target: RemotePath) -> Iterator[Found]:
    """Yield the files under ``sources``, each directory in the order of its names, as they go into folder ``target``.

    A directory keeps its own name; one written ``DIR/.`` gives only its contents. Links are followed.
    A source that gives nothing is unfit, and so is a second file for a place that is taken.
    """
    taken: dict[RemotePath, Path] = {}
    for source in sources:
        is_empty = True
        for found in find_source(source, target):
            is_empty = False
            if isinstance(found, UploadItem) and found.target in taken:
                first = taken[found.target]
                yield Unfit(str(found.source), f"{first} already goes to {found.target}; upload it to another folder")
                continue
            if isinstance(found, UploadItem):
                taken[found.target] = found.source
            yield found
        if is_empty:
            yield Unfit(source, "there is no file in it, so nothing to upload")


def find_source(source: str, target: RemotePath) -> Iterator[Found]:
    """Yield what one source gives: ``.`` and ``DIR/.`` the contents without the directory's name."""
    path = Path(source)
    if source == "." or source.rstrip("/").endswith("/."):
        yield from find_in_directory(path, target, ())
        return
    name = os.path.basename(os.path.abspath(source))
    try:
        yield from find_entry(path, target / name, ())
    except PathError as error:
        yield Unfit(source, str(error))


def find_entry(path: Path, target: RemotePath, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """Yield the file at ``path``, or those in the directory there; ``above`` are the directories that led here."""
    try:
        facts = path.stat()
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
        yield Unfit(str(path), "it is a link to nothing" if dangling else f"cannot be read: {error.strerror}")
        return
    if stat.S_ISREG(facts.st_mode):
        yield UploadItem(path, target, facts.st_size)
    elif stat.S_ISDIR(facts.st_mode):
        yield from find_in_directory(path, target, above)
    else:
        yield Unfit(str(path), "it is neither a file nor a directory")


def find_in_directory(path: Path, target: RemotePath, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    try:
        facts = path.stat()
        names = sorted(os.listdir(path))
    except OSError as error:
        yield Unfit(str(path), f"cannot be read: {error.strerror}")
        return
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        yield Unfit(str(path), "it is a link to a directory that it lies in")
        return
    for name in names:
        try:
            inner = target / name
        except PathError as error:
            yield Unfit(str(path / name), str(error))
        else:
            yield from find_entry(path / name, inner, (*above, here))
