"""What a node refuses to start on, with a sentence, and what it needs from Postgres."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from repo_node.config import NodeConfig
from repo_node.db import durability
from repo_node.db.errors import CatalogueUnavailable, NotDurable, SchemaTooOld
from repo_node.db.nodes import NameTaken
from repo_node.db.pool import Statement
from repo_node.db.roles import NoSuchRole, give_rights
from repo_node.settings import SettingError
from sharding.identity import ShardIdentityError
from tests.postgres import TestServer, run_apart
from tests.repo_node.nodes import (
    configure,
    new_path,
    prepare,
    query,
    run_nodes,
    wait_until,
)


def refuse(config: NodeConfig, error: type[Exception], words: str) -> None:
    """Check that the node does not start, and says why."""
    with pytest.raises(error, match=words), run_nodes([config]):
        pass


@pytest.fixture(scope="module")
def module_dsn(postgres: TestServer) -> Iterator[str]:
    """A database for the tests that leave it as it was."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        yield dsn


# ---------------------------------------------------------------------- the database


@pytest.mark.parametrize("value", ["off", "local"])
def test_a_database_that_forgets_commits_is_refused(ready_dsn: str, directory: Path, value: str) -> None:
    name = urlsplit(ready_dsn).path[1:]
    query(ready_dsn, f'ALTER DATABASE "{name}" SET synchronous_commit = {value}')
    refuse(configure(ready_dsn, directory), NotDurable, f"synchronous_commit = {value}")
    query(ready_dsn, f'ALTER DATABASE "{name}" SET synchronous_commit = remote_apply')
    with run_nodes([configure(ready_dsn, directory)]):
        pass


def test_a_server_that_does_not_sync_is_refused(
    module_dsn: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = durability.DURABILITY.sql.replace("current_setting('fsync')", "'off'")
    assert sql != durability.DURABILITY.sql
    monkeypatch.setattr(durability, "DURABILITY", Statement("durability", sql))
    refuse(configure(module_dsn, directory), NotDurable, "fsync = off")
    assert not (directory / "node-1").exists()


def test_a_database_without_a_schema_is_refused(empty_dsn: str, directory: Path) -> None:
    refuse(configure(empty_dsn, directory), SchemaTooOld, "holdfast init-db")
    assert query(empty_dsn, "SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


def test_an_older_schema_is_refused_and_a_newer_one_welcome(ready_dsn: str, directory: Path) -> None:
    query(ready_dsn, "UPDATE schema_migrations SET version = -version")
    refuse(configure(ready_dsn, directory), SchemaTooOld, "holdfast init-db")
    query(ready_dsn, "UPDATE schema_migrations SET version = 1000 - version")
    with run_nodes([configure(ready_dsn, directory)]):
        pass


def test_a_postgres_that_never_comes_ends_the_wait(directory: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dsn = f"postgresql://holdfast:secret@127.0.0.1:{nobody.getsockname()[1]}/holdfast"
        config = configure(dsn, directory, database={"start_timeout_seconds": 0.6})
        refuse(config, CatalogueUnavailable, "no connection to Postgres")


DDL = [
    "CREATE TABLE mine (x int)",
    "ALTER TABLE events ADD COLUMN x int",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "DROP TABLE events",
    "TRUNCATE events",
    "CREATE OR REPLACE FUNCTION good_replicas(bigint) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "UPDATE schema_migrations SET version = 1",
    "CREATE ROLE other SUPERUSER",
    "COPY users TO PROGRAM 'cat'",
]


def test_s41_a_node_runs_as_a_role_that_may_not_change_the_schema(
    postgres: TestServer, ready_dsn: str, directory: Path
) -> None:
    parts = urlsplit(ready_dsn)
    role = f"node_{parts.path[1:]}"
    with pytest.raises(NoSuchRole, match="CREATE ROLE"):
        run_apart(give_rights(ready_dsn, role))
    query(ready_dsn, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'runtime'")
    try:
        host = parts.netloc.rpartition("@")[2]
        config = configure(parts._replace(netloc=f"{role}:runtime@{host}").geturl(), directory)
        with pytest.raises(CatalogueUnavailable, match="init-db .* --node-role"), run_nodes([config]):
            pass
        for _ in range(2):
            run_apart(give_rights(ready_dsn, role))
        query(ready_dsn, "CREATE TABLE of_a_later_release (id bigint GENERATED ALWAYS AS IDENTITY)")
        query(config.database.dsn, "INSERT INTO of_a_later_release DEFAULT VALUES")
        for statement in DDL:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                query(config.database.dsn, statement)
        before = query(ready_dsn, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        with run_nodes([config]) as cluster:
            path = new_path()
            assert cluster.admin.put(path, b"x" * 2_000_000).status == 201
            assert cluster.admin.get(path).status == 200
            assert cluster.token("read")
            cluster.set({"ranges_max": 9})
            assert cluster.admin.get("/artifactory/api/holdfast/status").status == 200
            assert cluster.admin.delete(path).status == 204
        assert query(ready_dsn, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == before
    finally:
        query(ready_dsn, f'DROP OWNED BY "{role}"')
        query(ready_dsn, f'DROP ROLE "{role}"')


def test_settings_that_cannot_be_used_are_refused_at_the_start_and_ignored_later(
    ready_dsn: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(ready_dsn, directory)
    write = "INSERT INTO settings (key, value, updated_by) VALUES ('redundancy', $1::text::jsonb, 'test') "
    write += "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    with run_nodes([config]) as cluster:
        query(ready_dsn, write, '"many"')
        wait_until(lambda: any("settings cannot be used" in record.message for record in caplog.records))
        assert cluster.first.holds({"redundancy": 2})
        assert cluster.admin.put(new_path(), b"x").status == 201
        query(ready_dsn, write, "1")
        wait_until(lambda: cluster.first.holds({"redundancy": 1}))
        query(ready_dsn, write, "0")
    refuse(config, SettingError, "redundancy")


# ---------------------------------------------------------------------- names and addresses


def test_a_second_node_of_a_living_nodes_name_is_refused(ready_dsn: str, directory: Path) -> None:
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        refuse(configure(ready_dsn, directory / "other"), NameTaken, "node-1 is alive elsewhere")
        assert cluster.admin.put(new_path(), b"x").status == 201
    with run_nodes([configure(ready_dsn, directory / "other")]):
        pass


def test_an_address_in_use_is_named(module_dsn: str, directory: Path) -> None:
    config = configure(module_dsn, directory)
    for address in (config.http.listen, config.internal.listen):
        with socket.socket() as taken:
            taken.bind((address.host, address.port))
            taken.listen()
            refuse(config, OSError, f"cannot listen on {address}")


# ---------------------------------------------------------------------- shards


@pytest.fixture
def stopped(ready_dsn: str, directory: Path) -> tuple[NodeConfig, str]:
    """The configuration of a node that ran once and holds one artifact, whose path is given too."""
    config, path = configure(ready_dsn, directory), new_path()
    with run_nodes([config]) as cluster:
        assert cluster.admin.put(path, b"kept").status == 201
    return config, path


def shard_paths(config: NodeConfig) -> list[Path]:
    return [shard.path for shard in config.shards]


def with_shards(config: NodeConfig, *paths: Path) -> NodeConfig:
    shard = config.shards[0]
    return config.model_copy(update={"shards": tuple(shard.model_copy(update={"path": path}) for path in paths)})


@pytest.mark.parametrize("how", ["empty", "absent"])
def test_a_node_without_any_of_its_disks_is_refused_and_fills_none(stopped: tuple[NodeConfig, str], how: str) -> None:
    config, path = stopped
    for shard in shard_paths(config):
        shard.rename(shard.with_suffix(".aside"))
        if how == "empty":
            shard.mkdir()
    refuse(config, ShardIdentityError, "is its disk mounted")
    for shard in shard_paths(config):
        assert not shard.exists() or not any(shard.iterdir())
        if how == "empty":
            shard.rmdir()
        shard.with_suffix(".aside").rename(shard)
    with run_nodes([config]) as cluster:
        assert cluster.admin.get(path).body == b"kept"


def test_swapped_disks_are_refused(stopped: tuple[NodeConfig, str]) -> None:
    config, _ = stopped
    one, two = shard_paths(config)
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)
    refuse(config, ShardIdentityError, "is the right disk mounted")


def test_a_cloned_disk_is_refused_beside_its_original(stopped: tuple[NodeConfig, str]) -> None:
    config, _ = stopped
    one, two = shard_paths(config)
    clone = one.with_name("clone")
    shutil.copytree(one, clone)
    refuse(with_shards(config, one, two, clone), ShardIdentityError, "one is a copy")


def test_a_cloned_disk_is_refused_on_another_node(stopped: tuple[NodeConfig, str], directory: Path) -> None:
    config, _ = stopped
    clone = directory / "clone"
    shutil.copytree(shard_paths(config)[0], clone)
    with run_nodes([config]):
        other = with_shards(configure(config.database.dsn, directory, name="node-2"), clone)
        refuse(other, NameTaken, "is this disk a clone")


def test_a_disk_of_another_cluster_is_refused(
    stopped: tuple[NodeConfig, str], module_dsn: str, directory: Path
) -> None:
    config, _ = stopped
    other = with_shards(configure(module_dsn, directory, name="stranger"), *shard_paths(config))
    refuse(other, ShardIdentityError, "belongs to the cluster")
    assert not query(module_dsn, "SELECT 1 FROM nodes WHERE id = 'stranger'"), "and it has not registered there"


def test_a_directory_with_other_things_in_it_is_refused(module_dsn: str, directory: Path) -> None:
    config = configure(module_dsn, directory, name="tidy", shards=1)
    shard = shard_paths(config)[0]
    shard.mkdir(parents=True)
    (shard / "thesis.txt").write_text("not a shard")
    refuse(config, ShardIdentityError, "thesis.txt")
    assert [path.name for path in shard.iterdir()] == ["thesis.txt"]


def test_what_a_killed_node_left_staged_is_gone_at_its_next_start(stopped: tuple[NodeConfig, str]) -> None:
    config, _ = stopped
    left = shard_paths(config)[0] / "tmp" / "01890000-0000-7000-8000-000000000000"
    left.write_bytes(b"half an upload")
    with run_nodes([config]):
        assert not left.exists()
