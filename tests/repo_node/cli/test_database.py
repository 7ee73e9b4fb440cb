from __future__ import annotations

import asyncio
import json
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from repo_node.auth import passwords
from repo_node.cli.database import hide_password
from tests.repo_node.cli.conftest import Holdfast


def verifies(dsn: str, password: str) -> bool:
    async def stored() -> str:
        connection = await asyncpg.connect(dsn)
        try:
            value: str = await connection.fetchval("SELECT password_hash FROM users WHERE name = 'admin'")
            return value
        finally:
            await connection.close()

    return passwords.check_password(asyncio.run(stored()), password)


def test_s38_init_db_shows_the_password_of_a_new_admin_once(nowhere: Holdfast, empty_dsn: str) -> None:
    result = nowhere("init-db", "--dsn", empty_dsn)
    assert result.exit_code == 0, result.output
    assert "Applied schema.sql; the schema is at version" in result.stdout
    match = re.search(r"Made the user admin with the password (\S+) - keep it", result.stdout)
    assert match is not None
    assert verifies(empty_dsn, match[1])
    again = nowhere("init-db", "--dsn", empty_dsn)
    assert again.exit_code == 0
    assert "Nothing to apply: the schema is at version" in again.stdout
    assert "password" not in again.stdout


def test_init_db_writes_the_password_to_a_private_file(nowhere: Holdfast, empty_dsn: str, tmp_path: Path) -> None:
    nowhere.environment["HOLDFAST_DSN"] = empty_dsn
    result = nowhere("init-db", "--admin-password-file", "admin-password", "--json")
    assert result.exit_code == 0, result.output
    path = tmp_path / "admin-password"
    password = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert password not in result.output
    assert json.loads(result.stdout)["admin_password_file"] == "admin-password"
    assert verifies(empty_dsn, password)
    assert nowhere("init-db", "--admin-password-file", "admin-password").exit_code == 0
    assert path.read_text().strip() == password


def test_init_db_shows_the_password_when_its_file_cannot_be_written(
    nowhere: Holdfast, empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repo_node.cli.database.write_private", fail)
    result = nowhere("init-db", "--dsn", empty_dsn, "--admin-password-file", "admin-password", "--json")
    assert result.exit_code == 0
    assert "cannot be written (No space left on device), so the password is shown here" in result.stderr
    assert verifies(empty_dsn, json.loads(result.stdout)["admin_password"])


def test_init_db_tells_the_new_password_though_there_is_no_such_role(nowhere: Holdfast, empty_dsn: str) -> None:
    result = nowhere("init-db", "--dsn", empty_dsn, "--node-role", "no-such-role")
    assert result.exit_code == 1
    assert 'CREATE ROLE "no-such-role" LOGIN' in result.stderr
    match = re.search(r"with the password (\S+) - keep it", result.stdout)
    assert match is not None and verifies(empty_dsn, match[1])


def test_init_db_refuses_a_file_in_no_directory_before_it_does_anything(nowhere: Holdfast) -> None:
    result = nowhere("init-db", "--dsn", "postgresql://h/d", "--admin-password-file", "none/admin")
    assert result.exit_code == 2
    assert "none is no directory that --admin-password-file can be written to" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no database is named"),
        (["--dsn", "mysql://root:canary-secret@h/d"], "the DSN is not a Postgres URL"),
        (["--dsn", "postgresql://h/d", "--config", "node.toml"], "not both"),
        (["--dsn", "postgresql://u:canary-secret@h,/d"], "one of its hosts is empty"),
    ],
)
def test_init_db_refuses_wrong_usage(nowhere: Holdfast, arguments: list[str], words: str) -> None:
    result = nowhere("init-db", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "canary-secret" not in result.output


def test_init_db_says_that_the_database_cannot_be_reached(nowhere: Holdfast) -> None:
    result = nowhere("init-db", "--dsn", "postgresql://holdfast:canary-secret@127.0.0.1:1/holdfast")
    assert result.exit_code == 1
    assert "the database is not ready" in result.stderr
    assert "run init-db again" in result.stderr
    assert "canary-secret" not in result.output


def test_s33_init_db_keeps_a_wrong_password_to_itself(nowhere: Holdfast, empty_dsn: str) -> None:
    parts = urlsplit(empty_dsn)
    wrong = empty_dsn.replace(str(parts.password), "canary-secret")
    if wrong == empty_dsn:
        pytest.skip("this Postgres asks for no password")
    result = nowhere("init-db", "--dsn", wrong)
    assert result.exit_code == 1
    assert "password authentication failed" in result.stderr
    assert "canary-secret" not in result.output


def test_what_makes_tables_says_who_may(nowhere: Holdfast, empty_dsn: str, tmp_path: Path) -> None:
    parts = urlsplit(empty_dsn)
    role = f"poor_{parts.path[1:]}"
    dsn = parts._replace(netloc=f"{role}:poor@{parts.netloc.rpartition('@')[2]}").geturl()

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(empty_dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    kept = str(tmp_path / "kept")
    for command in (("init-db", "--dsn", empty_dsn), ("backup", "--dsn", empty_dsn, kept)):
        assert nowhere(*command).exit_code == 0
    asyncio.run(execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'poor'"))
    try:
        for command in (("restore", "--dsn", dsn, kept), ("init-db", "--dsn", dsn)):
            result = nowhere(*command)
            assert result.exit_code == 1
            assert "permission denied" in result.stderr and "the database's owner, with --dsn" in result.stderr
    finally:
        asyncio.run(execute(f'DROP ROLE "{role}"'))


def test_a_message_loses_the_password_as_written_and_decoded() -> None:
    dsn = "postgresql://u:p%40ss@h/d"
    assert hide_password(f"no {dsn}, p%40ss and p@ss", dsn) == "no the DSN, *** and ***"
    several = "postgresql://u:p%40ss@h:1,i:2/d"
    assert hide_password(f"no {several}, p%40ss and p@ss", several) == "no the DSN, *** and ***"
