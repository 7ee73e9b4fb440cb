"""Backups: a snapshot of the metadata in one file, versioned and checksummed, written and read as a stream.

A file is a magic word and frames: a kind (one byte), a length (four bytes, big-endian) and that many
bytes, compressed by zlib. ``H`` describes the snapshot (JSON), ``T`` begins a table (JSON), ``D`` are rows as
COPY's text, ``E`` ends the file with the number of rows of each table and the sha256 of all before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import asyncpg

from repo_node.db import snapshot

MAGIC = b"HOLDFAST-BACKUP-1\n"
FRAME = struct.Struct(">cI")
FRAME_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20

Say = Callable[[str, int], None]
"""Told the table at hand and its rows so far."""

Check = Callable[[], None]
"""Asked before each frame of rows; what it raises ends the backup."""


class Writer:
    """Writes frames, and the sum over them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._write(MAGIC)

    def frame(self, kind: bytes, payload: bytes) -> None:
        packed = zlib.compress(payload, 1)
        self._write(FRAME.pack(kind, len(packed)))
        self._write(packed)

    def document(self, kind: bytes, document: Any) -> None:
        self.frame(kind, json.dumps(document).encode())

    def end(self, rows: dict[str, int]) -> None:
        self.document(b"E", {"rows": rows, "sha256": self._sum.hexdigest()})

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)


async def write_backup(connection: asyncpg.Connection, path: Path, say: Say) -> dict[str, Any]:
    """Write a snapshot of the database to a new file, durably; return its description with the rows of each table.

    The file appears under its name when it is whole. Raises ``OSError``, ``asyncpg.PostgresError``, ``ValueError``.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        with create(draft) as file:
            described = await write_snapshot(connection, file, say)
        draft.rename(path)
        sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    return {**described, "bytes": size_of(path)}


async def write_snapshot(
    connection: asyncpg.Connection, file: IO[bytes], say: Say, check: Check = lambda: None
) -> dict[str, Any]:
    """Write a snapshot of the database to ``file`` and sync it, off the event loop; return its description."""
    await connection.execute(snapshot.BEGIN_SNAPSHOT)
    try:
        described = dict(await snapshot.describe(connection))
        writer = await asyncio.to_thread(Writer, file)
        await asyncio.to_thread(writer.document, b"H", described)
        rows = {}
        for table in await snapshot.tables(connection):
            say(table.name, 0)
            await asyncio.to_thread(writer.document, b"T", {"table": table.name, "columns": table.columns})
            data = RowFrames(writer, check)
            rows[table.name] = await snapshot.read_table(connection, table, data.add)
            check()
            await asyncio.to_thread(data.flush)
            say(table.name, rows[table.name])
        await asyncio.to_thread(writer.end, rows)
        await asyncio.to_thread(sync, file)
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.execute("ROLLBACK")
    return {**described, "rows": rows}


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class RowFrames:
    """Gathers rows until they are worth a frame."""

    def __init__(self, writer: Writer, check: Check) -> None:
        self._writer = writer
        self._check = check
        self._rows = bytearray()

    async def add(self, data: bytes) -> None:
        self._rows += data
        if len(self._rows) >= CHUNK_BYTES:
            self._check()
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        if self._rows:
            self._writer.frame(b"D", bytes(self._rows))
            self._rows.clear()


def create(path: Path) -> IO[bytes]:
    """Make a new file that only its owner may read: there are hashes of passwords in it."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def size_of(path: Path) -> int:
    return path.stat().st_size


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
