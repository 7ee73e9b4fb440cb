"""Reading backups: checking one to its end, and filling an empty database from it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import asyncpg

from repo_node.backups.backup import FRAME, FRAME_BYTES_MAX, MAGIC, Say, size_of
from repo_node.db import migrate, snapshot


class BadBackup(Exception):
    """The file is no backup, or not whole."""


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
