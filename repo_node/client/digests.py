"""Checksums of local files, computed off the event loop, piece by piece."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO

from repo_node.client.progress import Progress
from repo_node.client.rest import PIECE_BYTES


@dataclass(frozen=True, slots=True)
class FileDigests:
    """What a file held when it was hashed: its size, its checksums in hex, and the state it was in."""

    size: int
    sha256: str
    sha1: str
    md5: str
    state: tuple[int, int, int]


def read_state(file: BinaryIO) -> tuple[int, int, int]:
    """Return what changes when somebody writes to or replaces an open file: inode, size, time of change."""
    facts = os.fstat(file.fileno())
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


async def hash_file(file: BinaryIO, progress: Progress) -> FileDigests:
    """Read ``file`` from its start to its end. Raises ``OSError``."""
    digests = (
        hashlib.sha256(),
        hashlib.sha1(usedforsecurity=False),
        hashlib.md5(usedforsecurity=False),
    )

    def hash_piece() -> int:
        piece = file.read(PIECE_BYTES)
        for digest in digests:
            digest.update(piece)
        return len(piece)

    state = read_state(file)
    progress.begin("hashing", state[1])
    await asyncio.to_thread(file.seek, 0)
    size = 0
    while count := await asyncio.to_thread(hash_piece):
        size += count
        progress.advance(count)
    sha256, sha1, md5 = (digest.hexdigest() for digest in digests)
    return FileDigests(size, sha256, sha1, md5, state)
