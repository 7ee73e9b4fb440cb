"""The one canonicaliser: from the raw request target to the path that authorisation, storage and logs use.

A path is decoded once. Anything two readers could read differently is refused rather than repaired.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

SEGMENT_BYTES_MAX = 255
PROPERTIES_MAX = 100
FORBIDDEN_IN_KEYS = frozenset(")(}{][*+^$\\/~`!@#%&<>;=,±§ ")
REPOSITORY_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLAIN = re.compile(rf"(?:/(?!\.{{1,2}}(?:/|\Z))[A-Za-z0-9._-]{{1,{SEGMENT_BYTES_MAX}}})+")
"""Paths that are in canonical form for certain: most are, and need no look at each segment."""

RESERVED_KEYS = frozenset(
    {"api", "ui", "metrics", "access", "internal", "list", "v1", "v2", "webapp", "repo", "configurations"}
)


class BadPath(ValueError):
    """The path cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A request target in canonical form.

    ``properties`` are its matrix parameters; ``mandatory`` names those that were written with a plus (``name+=value``).
    """

    segments: tuple[str, ...]
    is_folder: bool
    properties: Mapping[str, tuple[str, ...]]
    mandatory: frozenset[str] = frozenset()

    @property
    def encoded(self) -> str:
        """The path in its one percent-encoded form, without matrix parameters and trailing slash."""
        return "/" + "/".join(quote(segment, safe="") for segment in self.segments)

    def __str__(self) -> str:
        return "/" + "/".join(self.segments) + ("/" if self.is_folder and self.segments else "")


def join_path(folder: str, name: str) -> str:
    """Return the path of what lies in a folder of a repository, whose root is ''."""
    return f"{folder}/{name}" if folder else name


def split_path(path: str) -> tuple[str, str]:
    """Return the folder and the name that ``join_path`` makes ``path`` of."""
    folder, _, name = path.rpartition("/")
    return folder, name


class ArtifactPath(NamedTuple):
    """A place in a repository. The root of the repository has no name and no folder."""

    repository: str
    folder: str
    name: str

    @property
    def path(self) -> str:
        return join_path(self.folder, self.name)


def parse_target(raw: str) -> Target:
    """Return the canonical form of a raw request target. Raises ``BadPath``."""
    path = raw.partition("?")[0]
    if PLAIN.fullmatch(path):
        return Target(tuple(path[1:].split("/")), False, {})
    if not path.startswith("/"):
        raise BadPath("the request target must be a path that begins with /")
    pieces = path[1:].split("/")
    # Matrix parameters may follow the slash of a folder, too.
    is_folder = not pieces[-1].partition(";")[0]
    segments: list[str] = []
    properties: dict[str, tuple[str, ...]] = {}
    mandatory: set[str] = set()
    for number, piece in enumerate(pieces, 1):
        name, *parameters = piece.split(";")
        if name or number < len(pieces):
            segments.append(check_segment(decode(name)))
        for parameter in parameters:
            add_property(properties, mandatory, parameter)
    return Target(tuple(segments), is_folder, properties, frozenset(mandatory))


def decode(piece: str) -> str:
    """Percent-decode once, strictly."""
    if piece.isascii() and "%" not in piece:
        return piece
    if re.search(r"%(?![0-9A-Fa-f]{2})", piece):
        raise BadPath("a % in the path must be followed by two hex digits")
    try:
        return unquote_to_bytes(piece.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise BadPath("the path is not valid UTF-8") from None


def check_query(query: str) -> None:
    """Refuse a raw query that is not valid UTF-8: it would be read as text that nobody sent. Raises ``BadPath``."""
    if not query or (query.isascii() and "%" not in query):
        return
    try:
        unquote_to_bytes(query.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise BadPath("the query is not valid UTF-8") from None


def check_segment(segment: str) -> str:
    if segment in ("", ".", ".."):
        raise BadPath("the path has an empty, '.' or '..' segment")
    if "/" in segment or "\\" in segment:
        raise BadPath("the path has an encoded slash or a backslash")
    plain = segment.isascii() and segment.isprintable()
    if not plain and any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in segment):
        raise BadPath("the path has a control character")
    if len(segment if plain else segment.encode()) > SEGMENT_BYTES_MAX:
        raise BadPath(f"a segment of the path is longer than {SEGMENT_BYTES_MAX} bytes")
    if not plain and not unicodedata.is_normalized("NFC", segment):
        raise BadPath("the path is not in Unicode normalisation form C")
    return segment


def add_property(properties: dict[str, tuple[str, ...]], mandatory: set[str], parameter: str) -> None:
    key, _, value = parameter.partition("=")
    key = decode(key)
    if key.endswith("+"):
        key = key[:-1]
        mandatory.add(key)
    values = tuple(map(check_property_value, decode(value).split(",")))
    properties[check_property_key(key)] = each_once((*properties.get(key, ()), *values))
    if len(properties) > PROPERTIES_MAX:
        raise BadPath(f"more than {PROPERTIES_MAX} matrix parameters")


def each_once(values: Iterable[str]) -> tuple[str, ...]:
    """Return the values of a property: a set to Artifactory's clients, in the order in which they came."""
    return tuple(dict.fromkeys(values))


def check_property_key(key: str) -> str:
    """Return ``key`` if a property may be called so. Raises ``BadPath``."""
    if not key or FORBIDDEN_IN_KEYS & set(key) or has_control_characters(key) or len(key.encode()) > SEGMENT_BYTES_MAX:
        raise BadPath(f"no property can be called {key[:SEGMENT_BYTES_MAX]!r}")
    return key


def check_property_value(value: str) -> str:
    """Return ``value`` if a property may have it. Raises ``BadPath``."""
    if has_control_characters(value):
        raise BadPath("the value of a property has a control character")
    return value


def has_control_characters(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def artifact_path(segments: tuple[str, ...], *, path_bytes_max: int) -> ArtifactPath:
    """Read ``segments`` as a repository and a path in it. Raises ``BadPath``."""
    if not segments:
        raise BadPath("the path names no repository")
    repository, *rest = segments
    folder, name = "/".join(rest[:-1]), rest[-1] if rest else ""
    if len("/".join(rest).encode()) > path_bytes_max:
        raise BadPath(f"the path is longer than {path_bytes_max} bytes")
    return ArtifactPath(repository, folder, name)


def check_repository_key(key: str) -> str:
    """Return ``key`` if a repository may be called so. Raises ``BadPath``."""
    if not REPOSITORY_KEY.fullmatch(key) or key.lower() in RESERVED_KEYS:
        raise BadPath(
            "a repository key has 1 to 64 letters, digits, '.', '_' or '-', begins with a letter or digit, "
            f"and is none of {', '.join(sorted(RESERVED_KEYS))}"
        )
    return key
