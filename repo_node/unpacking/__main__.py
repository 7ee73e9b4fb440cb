"""The process that unpacks: it reads one archive, writes frames, and has the means for nothing else."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import BinaryIO

from repo_node.unpacking.frames import Kind, Limits, Reason, Refused, frame, pack
from repo_node.unpacking.reading import ArchiveTooLarge, BadArchive, data_of, entries
from repo_node.workers.parent import end_with

ARCHIVE = 0
"""The descriptor of the archive: standard input."""

FILES_MAX = 16


def confine(limits: Limits) -> None:
    """Limit what this process may use, for good."""
    for what, most in (
        (resource.RLIMIT_AS, limits.memory_bytes_max),
        (resource.RLIMIT_CPU, limits.seconds_max),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def unpack(kind: str, limits: Limits, out: BinaryIO) -> None:
    """Tell the members of the archive when all of it is proved, then each with its data."""
    with os.fdopen(ARCHIVE, "rb", closefd=False) as archive:
        size = archive.seek(0, os.SEEK_END)
        archive.seek(0)
        for entry in entries(kind, archive, size, limits):
            for _ in data_of(entry):
                pass
            out.write(frame(Kind.MEMBER, pack(entry[0])))
        out.write(frame(Kind.CHECKED))
        archive.seek(0)
        for entry in entries(kind, archive, size, limits):
            out.write(frame(Kind.MEMBER, pack(entry[0])))
            for piece in data_of(entry):
                out.write(frame(Kind.DATA, piece))
        out.write(frame(Kind.END))


def main() -> None:
    parent, kind, limits = sys.argv[1:]
    end_with(int(parent))
    allowed = Limits(**json.loads(limits))
    confine(allowed)
    with os.fdopen(1, "wb", closefd=False) as out:
        try:
            unpack(kind, allowed, out)
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more
        except Exception as error:
            out.write(frame(Kind.REFUSED, pack(refusal_of(error))))


def refusal_of(error: Exception) -> Refused:
    match error:
        case ArchiveTooLarge():
            return Refused(str(error), Reason.TOO_LARGE)
        case BadArchive():
            return Refused(str(error), Reason.BAD)
        case MemoryError():
            return Refused("It takes more memory than it may (setting explode_memory_bytes_max).", Reason.TOO_LARGE)
        case OSError(errno=int()):
            return Refused(describe(error), Reason.UNREADABLE)
        case _:
            # Whatever a reader raises over bytes that anybody may have sent, it cannot read them.
            return Refused(f"It cannot be read: {describe(error)}.", Reason.BAD)


def describe(error: Exception) -> str:
    return f"{type(error).__name__} {str(error)[:500]}".strip()


if __name__ == "__main__":
    main()
