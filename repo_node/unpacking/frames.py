"""What the process that unpacks tells: each member, its data, and how it ended. Pure."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum

HEAD = struct.Struct(">BI")
"""A frame begins with its kind and the length of what follows."""

DATA_BYTES_MAX = 256 << 10
FACTS_BYTES_MAX = 64 << 10


class Kind(IntEnum):
    """What a frame is. The members come twice: as a list, all of it, when all are proved, then each with its data."""

    MEMBER = 1
    CHECKED = 2
    DATA = 3
    END = 4
    REFUSED = 5


class Reason(StrEnum):
    """Whose fault it is that an archive is not unpacked."""

    BAD = "bad"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    """The disk does not give it back: another time, or another node, may."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: the name as it stands there, and its bytes when it is unpacked."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the archive is not unpacked."""

    message: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may be at most, and what unpacking it may use. Goes to the process as one argument."""

    entries_max: int
    bytes_max: int
    ratio_max: int
    memory_bytes_max: int
    seconds_max: int


def frame(kind: Kind, body: bytes | memoryview = b"") -> bytes:
    return HEAD.pack(kind, len(body)) + body


def pack(facts: Member | Refused | Limits) -> bytes:
    return json.dumps(asdict(facts)).encode()


def member_from(body: bytes) -> Member:
    """Raises ``ValueError``."""
    match json.loads(body):
        case {"name": str(name), "size": int(size)} if size >= 0:
            return Member(name, size)
    raise ValueError("no member of an archive")


def refused_from(body: bytes) -> Refused:
    """Raises ``ValueError``."""
    match json.loads(body):
        case {"message": str(message), "reason": str(reason)}:
            return Refused(message, Reason(reason))
    raise ValueError("no refusal of an archive")
