"""Paths of artifacts as a client writes them: checked by the server's rules, percent-encoded for a URL."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

from repo_node.paths import BadPath, check_segment


class PathError(ValueError):
    """A name the server would refuse; the message says why and what would do."""


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A repository, or a folder or file in it; ``segments`` are decoded names and have been checked."""

    repository: str
    segments: tuple[str, ...] = ()

    def __truediv__(self, name: str) -> RemotePath:
        """Return the path of ``name`` in this folder. Raises ``PathError``."""
        check_name(name)
        return RemotePath(self.repository, (*self.segments, name))

    def __str__(self) -> str:
        return "/".join((self.repository, *self.segments))

    @property
    def name(self) -> str:
        """The last name: of the file, the folder or the repository."""
        return self.segments[-1] if self.segments else self.repository

    @property
    def url_path(self) -> str:
        """The path below the base URL, percent-encoded, with its leading slash."""
        return "/" + "/".join(quote(part, safe="") for part in (self.repository, *self.segments))


def check_name(name: str) -> None:
    """Raise ``PathError`` when the server would not take ``name`` as one segment of a path."""
    if not is_unicode(name):
        raise PathError("the name is not valid UTF-8; rename it")
    if not unicodedata.is_normalized("NFC", name):
        raise PathError("the name is Unicode in decomposed form (as macOS may write it); rename it to its NFC form")
    try:
        check_segment(name)
    except BadPath as error:
        raise PathError(f"{error}; use another name") from None


def is_unicode(name: str) -> bool:
    """Return whether ``name`` is text, and not bytes that the file system gave and that mean nothing in UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_remote(text: str) -> RemotePath:
    """Return what ``REPO/DIR/NAME`` names; a slash at either end changes nothing. Raises ``PathError``."""
    names = text.removeprefix("/").removesuffix("/").split("/")
    if names == [""]:
        raise PathError("the path is empty; write REPO/PATH, for example generic-local/app/1.0/app.tgz")
    for name in names:
        check_name(name)
    return RemotePath(names[0], tuple(names[1:]))
