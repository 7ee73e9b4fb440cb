"""Backups: everything that matters comes back, and nothing does from a file that is not whole."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from repo_node.backups import backup
from repo_node.backups import restore as restoring
from repo_node.backups.restore import BadBackup
from repo_node.cli import main
from repo_node.db import migrate, snapshot
from repo_node.db.snapshot import NotEmpty
from tests.postgres import TestServer, run_apart
from tests.repo_node.db.scene import Queries, Scene, open_scene

LEFT_EMPTY = ("jobs", "checks", "sightings", "scrubs", "shard_space", "repair_queue")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


def unsaid(table: str, rows: int) -> None:
    """Say nothing."""


async def fill(scene: Scene) -> None:
    """Make some of everything."""
    for number in range(50):
        properties = {"odd": ["tab\t, newline\n, backslash \\, quote '\"", "\\N", "é\u2028"]}
        await scene.upload(f"folder-é/{number}\\t", bytes([number]), shards=(1, 3), properties=properties)
    await scene.upload("empty", b"")
    async with connected(scene.dsn) as connection:
        await connection.execute("INSERT INTO settings (key, value, updated_by) VALUES ('redundancy', '3', 'x')")
        await connection.execute("UPDATE users SET password_hash = 'the old hash'")
        await connection.execute(
            "UPDATE replicas SET state = 'suspect' WHERE generation IN (SELECT min(generation::text)::uuid FROM replicas)"
        )


async def contents(dsn: str) -> dict[str, list[str]]:
    """Return every row of every table of a snapshot as text."""
    async with connected(dsn) as connection:
        return {
            table.name: sorted(str(tuple(row)) for row in await connection.fetch(f'SELECT * FROM "{table.name}"'))
            for table in await snapshot.tables(connection)
        }


@pytest.fixture(scope="module")
def source(postgres: TestServer) -> Iterator[str]:
    """A database with some of everything."""

    async def prepare(dsn: str) -> None:
        async with open_scene(dsn, Queries()) as scene:
            await fill(scene)

    with postgres.database(postgres.template()) as dsn:
        run_apart(prepare(dsn))
        yield dsn


@pytest.fixture(scope="module")
def taken(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of ``source``."""
    path = tmp_path_factory.mktemp("backup") / "backup"

    async def take() -> None:
        async with connected(source) as connection:
            await backup.write_backup(connection, path, unsaid)

    run_apart(take())
    return path


async def restore(dsn: str, path: Path) -> dict[str, Any]:
    async with connected(dsn) as connection:
        return await restoring.restore_backup(connection, path, unsaid)


@pytest.mark.parametrize("target", ["empty", "fresh"])
async def test_everything_comes_back(source: str, taken: Path, empty_dsn: str, dsn: str, target: str) -> None:
    into = empty_dsn if target == "empty" else dsn
    before = await contents(source)
    described = await restore(into, taken)
    after = await contents(into)
    for name in set(before) - {"holds"}:
        assert after[name] == before[name], name
        assert described["rows"][name] == len(before[name])
    assert len(before["artifacts"]) > 50 and len(before["replicas"]) == 100
    async with connected(into) as connection:
        for name in LEFT_EMPTY:
            assert await connection.fetchval(f"SELECT count(*) FROM {name}") == 0
        [event] = await connection.fetch("SELECT id FROM events WHERE kind = 'restore'")
        # Above every id that whoever follows events may have.
        assert event["id"] > 1_000_000_000_000


async def test_restored_database_goes_on(taken: Path, dsn: str) -> None:
    await restore(dsn, taken)
    async with connected(dsn) as connection:
        await connection.execute("UPDATE nodes SET heartbeat_at = now() + interval '1 day'")
    from repo_node.db.pool import open_database
    from tests.repo_node.db.scene import database_section

    async with open_database(database_section(dsn), Queries()) as database:
        scene = Scene(dsn, database, (await only(dsn, "SELECT id FROM repositories"))[0])
        outcome, _ = await scene.upload("new", b"something new", shards=(1, 3))
        assert outcome.value == "adopted"
        outcome, _ = await scene.upload("known", bytes([7]), shards=(1, 3))
        assert outcome.value == "deduplicated"


async def only(dsn: str, sql: str) -> asyncpg.Record:
    async with connected(dsn) as connection:
        [row] = await connection.fetch(sql)
    return row


async def test_restored_database_holds_deletions(taken: Path, dsn: str) -> None:
    await restore(dsn, taken)
    async with connected(dsn) as connection:
        assert await connection.fetchval("SELECT deletions_held()")


async def test_database_in_use_is_refused_and_left_alone(source: str, taken: Path) -> None:
    before = await contents(source)
    with pytest.raises(NotEmpty):
        await restore(source, taken)
    assert await contents(source) == before


async def test_snapshot_is_of_one_moment(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads committed between two tables of the same snapshot are in neither."""
    async with open_scene(dsn, Queries()) as scene:
        await fill(scene)
        read_table = snapshot.read_table

        async def read_and_upload(connection: asyncpg.Connection, table: Any, write: Any) -> int:
            await scene.upload(f"later/{table.name}", table.name.encode(), shards=(1, 3))
            return await read_table(connection, table, write)

        monkeypatch.setattr(snapshot, "read_table", read_and_upload)
        async with connected(dsn) as connection:
            described = await backup.write_backup(connection, tmp_path / "backup", unsaid)
    assert described["rows"]["blobs"] == 51
    assert described["rows"]["replicas"] == 100


async def test_left_over_of_a_failed_backup_is_removed(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "read_table", fail)
    async with connected(source) as connection:
        with pytest.raises(OSError, match="No space"):
            await backup.write_backup(connection, tmp_path / "backup", unsaid)
        assert await connection.fetchval("SELECT 1") == 1
    assert list(tmp_path.iterdir()) == []


def test_backup_is_readable_by_its_owner_alone(taken: Path) -> None:
    assert taken.stat().st_mode & 0o777 == 0o600


def test_whole_backup_is_whole(taken: Path) -> None:
    described = restoring.check_backup(taken)
    assert described["rows"]["blobs"] == 51
    assert described["schema_version"] == migrate.version_needed()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_any_flipped_bit_is_found(taken: Path, tmp_path: Path, share: float) -> None:
    data = bytearray(taken.read_bytes())
    data[int(share * len(data))] ^= 1
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(BadBackup):
        restoring.check_backup(tmp_path / "bad")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
async def test_cut_backup_restores_nothing(taken: Path, tmp_path: Path, dsn: str, keep: int) -> None:
    (tmp_path / "bad").write_bytes(taken.read_bytes()[:keep])
    before = await contents(dsn)
    with pytest.raises(BadBackup):
        await restore(dsn, tmp_path / "bad")
    assert await contents(dsn) == before


def test_backup_with_something_behind_it_is_refused(taken: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(taken.read_bytes() + b"x")
    with pytest.raises(BadBackup):
        restoring.check_backup(tmp_path / "bad")


async def test_backup_of_a_newer_schema_is_refused(taken: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "version_needed", lambda: 1)
    with pytest.raises(BadBackup, match="release that wrote it"):
        await restore(dsn, taken)


async def test_restore_that_fails_half_way_leaves_nothing(
    taken: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await contents(dsn)
    write_table = snapshot.write_table

    async def fail_at_artifacts(connection: asyncpg.Connection, name: str, *rest: Any) -> int:
        if name == "artifacts":
            raise OSError(5, "Input/output error")
        return await write_table(connection, name, *rest)

    monkeypatch.setattr(snapshot, "write_table", fail_at_artifacts)
    with pytest.raises(OSError, match="Input/output"):
        await restore(dsn, taken)
    assert await contents(dsn) == before


def test_every_table_is_taken_or_left_out_on_purpose(source: str) -> None:
    async def names() -> set[str]:
        async with connected(source) as connection:
            return {
                row[0]
                for row in await connection.fetch(
                    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
                )
            }

    assert set(run_apart(names())) >= snapshot.LEFT_OUT - {"lease"}


def run(*arguments: str, dsn: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments), env={"HOLDFAST_DSN": dsn})
    return result.exit_code, result.output


def test_commands_back_up_check_and_restore(source: str, empty_dsn: str, tmp_path: Path) -> None:
    path = str(tmp_path / "backup")
    code, text = run("backup", path, dsn=source)
    assert code == 0 and "51 blobs, 100 replicas" in text, text
    assert run("backup", path, dsn=source)[0] == 2, "it exists already"
    code, text = run("restore", "--check", path, dsn="postgresql://nowhere.invalid/x")
    assert code == 0 and "is whole" in text
    code, text = run("restore", "--json", path, dsn=empty_dsn)
    assert code == 0, text
    assert json.loads(text[text.index("{") :])["rows"]["blobs"] == 51
    code, text = run("restore", path, dsn=empty_dsn)
    assert code == 1 and "in use" in text and "nothing was changed" in text


def test_unreachable_database_is_told_without_its_password(tmp_path: Path) -> None:
    code, text = run("backup", str(tmp_path / "x"), dsn="postgresql://me:canary@127.0.0.1:1/x")
    assert code == 1 and "canary" not in text
    assert os.listdir(tmp_path) == []
