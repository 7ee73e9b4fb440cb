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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

import asyncpg

from repo_node.db import migrate, snapshot

MAGIC = b"HOLDFAST-BACKUP-1\n"
FRAME = struct.Struct(">cI")
FRAME_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20

Say = Callable[[str, int], None]
"""Told the table at hand and its rows so far."""


class BadBackup(Exception):
    """The file is no backup, or not whole."""


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


async def write_snapshot(connection: asyncpg.Connection, file: IO[bytes], say: Say) -> dict[str, Any]:
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
            data = RowFrames(writer)
            rows[table.name] = await snapshot.read_table(connection, table, data.add)
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

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rows = bytearray()

    async def add(self, data: bytes) -> None:
        self._rows += data
        if len(self._rows) >= CHUNK_BYTES:
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


def read_frames(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the bytes of each frame up to the end's. Raises ``BadBackup`` when anything is wrong.

    What was yielded before that was read right, yet means nothing until the end has come.
    """
    total = hashlib.sha256()
    if file.read(len(MAGIC)) != MAGIC:
        raise BadBackup("it does not begin as a backup of this version does")
    total.update(MAGIC)
    while True:
        head = file.read(FRAME.size)
        if len(head) < FRAME.size:
            raise BadBackup("it ends too early: it was not written to its end, or cut")
        kind, length = FRAME.unpack(head)
        packed = file.read(length) if length <= FRAME_BYTES_MAX else b""
        if len(packed) < length:
            raise BadBackup("it ends too early, or is damaged")
        try:
            payload = zlib.decompress(packed)
        except zlib.error as error:
            raise BadBackup(f"it is damaged: {error}") from None
        if kind == b"E":
            check_end(payload, total.hexdigest(), file)
            yield kind, payload
            return
        total.update(head)
        total.update(packed)
        yield kind, payload


def check_end(payload: bytes, digest: str, file: IO[bytes]) -> None:
    if json.loads(payload)["sha256"] != digest:
        raise BadBackup("it is damaged: its checksum is wrong")
    if file.read(1):
        raise BadBackup("something follows its end")


def check_backup(path: Path) -> dict[str, Any]:
    """Read a backup to its end and return its description. Raises ``BadBackup``, ``OSError``."""
    header: dict[str, Any] = {}
    rows: dict[str, int] = {}
    with path.open("rb") as file:
        for kind, payload in read_frames(file):
            if kind == b"H":
                header = json.loads(payload)
            elif kind == b"E":
                rows = json.loads(payload)["rows"]
    return {**header, "rows": rows, "bytes": size_of(path)}


async def restore_backup(connection: asyncpg.Connection, path: Path, say: Say) -> dict[str, Any]:
    """Fill an empty database from a backup, all or nothing; return the backup's description.

    Deletions are held afterwards. Raises ``BadBackup``, ``snapshot.NotEmpty``, ``OSError``, ``asyncpg.PostgresError``.
    """
    described = check_backup(path)
    async with snapshot.locked(connection):
        await migrate.apply(connection, migrate.migrations(), migrate.schema_text())
        if described["schema_version"] > migrate.version_needed():
            raise BadBackup(f"it has schema {described['schema_version']}: restore it with the release that wrote it")
        async with connection.transaction():
            await fill(connection, path, described, say)
    return described


async def fill(connection: asyncpg.Connection, path: Path, described: dict[str, Any], say: Say) -> None:
    known = await snapshot.tables(connection)
    await snapshot.check_empty(connection, known)
    await snapshot.clear_seeds(connection, known)
    columns = {table.name: set(table.columns) for table in known}
    with path.open("rb") as file, closing(TableFrames(read_frames(file))) as frames:
        while (table := frames.next_table()) is not None:
            name = table["table"]
            if not set(table["columns"]) <= columns.get(name, set()):
                raise BadBackup(f"its table {name} is not one of this release's")
            say(name, 0)
            count = await snapshot.write_table(connection, name, table["columns"], frames.rows())
            if count != described["rows"][name]:
                raise BadBackup(f"it should have {described['rows'][name]} rows of {name}, and had {count}")
            say(name, count)
    await snapshot.finish(
        connection, json.dumps({"cluster_id": described["cluster_id"], "taken_at": described["taken_at"]})
    )


class TableFrames:
    """The frames of a backup, a table at a time."""

    def __init__(self, frames: Iterator[tuple[bytes, bytes]]) -> None:
        self._frames = frames
        self._table: bytes | None = None

    def close(self) -> None:
        self._frames = iter(())

    def next_table(self) -> dict[str, Any] | None:
        """Go on to the next table; None at the end."""
        while self._table is None:
            kind, payload = next(self._frames)
            if kind == b"E":
                return None
            self._table = payload if kind == b"T" else None
        found: dict[str, Any] = json.loads(self._table)
        self._table = None
        return found

    async def rows(self) -> AsyncIterator[bytes]:
        """Yield the rows of the table at hand; then ``next_table`` goes on."""
        for kind, payload in self._frames:
            if kind == b"D":
                yield payload
                continue
            self._frames = chained(kind, payload, self._frames)
            return


def chained(kind: bytes, payload: bytes, rest: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    yield kind, payload
    yield from rest


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
