"""``up`` and ``down`` with fake nodes: what starts, what is told, what is left after each way to end."""

from __future__ import annotations

import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import asyncpg
import pytest

from repo_node.launch import nodes, processes
from repo_node.launch.postgres import EmbeddedPostgres
from tests.launch.ordinary_user import OrdinaryUser
from tests.launch.runs import ClusterRun, find_front_port, wait_for
from tests.launch.test_ports import listen
from tests.postgres import run_apart, run_statement

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user already")
FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))


def start_by_hand(cluster: ClusterRun, node_id: str) -> subprocess.Popen[bytes]:
    config = cluster.layout.config(node_id)
    relative = os.path.relpath(config, cluster.layout.directory)
    return subprocess.Popen(
        [sys.executable, "-S", FAKE_NODE, "node", "--config", relative],
        cwd=cluster.layout.directory,
        stdout=subprocess.DEVNULL,
    )


def test_up_serves_on_every_address_from_sessions_of_their_own(running: ClusterRun) -> None:
    record = running.record
    assert record.front_url == f"http://127.0.0.1:{running.port}"
    assert [(node.id, node.zone) for node in record.nodes] == [(f"node-{n}", f"zone-{n}") for n in (1, 2, 3)]
    for url in (record.front_url, *(node.url for node in record.nodes)):
        with urllib.request.urlopen(url + nodes.READINESS_PATH, timeout=5) as answer:
            assert answer.status == 200
    assert running.process is not None
    pids = {record.up_pid, record.postgres_pid, *(node.pid for node in record.nodes)}
    assert len(pids) == 5
    assert record.up_pid == running.process.pid
    assert all(pid is not None and processes.is_running(pid) for pid in pids)
    # Each in a session of its own, or Ctrl-C would reach the children as well.
    assert {os.getsid(pid) for pid in pids if pid is not None} == pids


def test_s33_up_tells_urls_user_and_a_line_to_paste_and_no_secret(running: ClusterRun) -> None:
    text, password_file = running.text(), running.layout.admin_password
    assert all(url in text for url in (running.record.front_url, *(node.url for node in running.record.nodes)))
    assert f"user admin, password in {password_file}" in text
    assert f'curl -u "admin:$(cat {password_file})"' in text
    postgres_password = EmbeddedPostgres(running.layout.postgres).files.password
    secrets = [password_file.read_text().strip(), postgres_password, running.layout.cluster_key.read_text().strip()]
    words = [word for pid in running.find_running() for word in processes.read_command_line(pid)]
    logs = [running.layout.log(node.id).read_text() for node in running.record.nodes]
    assert len(words) > 20
    assert not any(secret in place for secret in secrets for place in (text, *words, *logs))


def test_s41_nodes_get_a_role_that_reads_and_writes_and_changes_no_table(running: ClusterRun) -> None:
    configs = [tomllib.loads(running.layout.config(node.id).read_text()) for node in running.record.nodes]
    [dsn] = {config["database"]["dsn"] for config in configs}
    assert running.layout.database_password.read_text().strip() in dsn != running.record.dsn
    run_apart(run_statement(dsn, "UPDATE users SET email = email"))
    for refused in ("CREATE TABLE mine (x int)", "DROP TABLE users", "TRUNCATE events", "CREATE DATABASE mine"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            run_apart(run_statement(dsn, refused))
    run_apart(run_statement(running.record.dsn, "CREATE TEMPORARY TABLE of_its_owner (x int)"))


def test_up_writes_every_file_for_its_owner_alone(running: ClusterRun) -> None:
    own = [path for path in running.layout.directory.rglob("*") if "postgres/data/" not in str(path)]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in own}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    names = {"cluster.json", "cluster.key", "admin-password", "database-password", "lock", "nodes", "postgres"}
    assert {path.name for path in running.layout.directory.iterdir()} >= names


def test_up_changes_no_mode_of_a_private_home(running: ClusterRun, running_home: tuple[Path, dict[Path, int]]) -> None:
    home, modes = running_home
    assert running.layout.directory.is_relative_to(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {path: path.stat().st_mode for path in modes} == modes


@pytest.mark.parametrize("option", [[], ["--detach"]])
def test_up_is_refused_with_the_holder_when_the_directory_is_in_use(running: ClusterRun, option: list[str]) -> None:
    assert running.process is not None
    status, output = running.run("up", "--port", str(find_front_port()), *option)
    assert status == 1
    assert f"process {running.process.pid}" in output


def test_dead_node_is_told_with_its_log_and_the_way_to_start_it_and_is_not_started(running: ClusterRun) -> None:
    pid = running.pid("node-2")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "node-2 was killed by SIGKILL" in running.text(), "the notice of the death")
    config = running.layout.config("node-2")
    assert "fake node node-2 starts" in running.text()
    assert f"holdfast node --config {config}" in running.text()
    wait_for(lambda: running.pid("node-2") is None, "the record of the death")
    assert nodes.find_nodes([config]) == {config: []}
    again = start_by_hand(running, "node-2")
    wait_for(lambda: running.pid("node-2") == again.pid, "the record of the return")
    assert f"node-2 runs again, as process {again.pid}" in running.text()


def test_dead_postgres_is_started_again(running: ClusterRun) -> None:
    before = running.record
    assert before.postgres_pid is not None
    os.kill(before.postgres_pid, signal.SIGKILL)
    wait_for(lambda: "Postgres runs again" in running.text(), "the return of Postgres")
    wait_for(lambda: running.record.postgres_pid != before.postgres_pid, "the record of the return")
    assert running.record.dsn == before.dsn
    assert EmbeddedPostgres(running.layout.postgres).pid == running.record.postgres_pid


def test_ctrl_c_stops_everything_also_a_node_started_by_hand(cluster: ClusterRun) -> None:
    cluster.start()
    os.kill(cluster.pid("node-3") or 0, signal.SIGKILL)
    wait_for(lambda: cluster.pid("node-3") is None, "the record of the death")
    with start_by_hand(cluster, "node-3") as by_hand:
        wait_for(lambda: cluster.pid("node-3") == by_hand.pid, "the record of the return")
        assert cluster.interrupt() == 0
        assert by_hand.wait(10) == 0
    assert cluster.find_running() == set()
    assert cluster.text().rstrip().endswith("Stopped.")
    assert {cluster.record.up_pid, cluster.record.postgres_pid, *(n.pid for n in cluster.record.nodes)} == {None}


def test_second_up_finds_the_same_data_after_everything_was_killed(cluster: ClusterRun) -> None:
    cluster.start("--nodes", "1")
    password, before = cluster.layout.admin_password.read_text(), cluster.record
    assert "settings set" not in cluster.text()
    cluster.kill()
    for pid in cluster.find_running():
        processes.send_signal(pid, signal.SIGKILL)
    cluster.start("--redundancy", "1")
    assert cluster.layout.admin_password.read_text() == password
    assert (cluster.record.dsn, cluster.record.front_url) == (before.dsn, before.front_url)
    assert "holdfast settings set redundancy 1" in cluster.text()


def test_s38_admin_password_is_not_invented_when_the_database_has_an_admin(cluster: ClusterRun) -> None:
    cluster.layout.admin_password.unlink()
    cluster.start("--nodes", "1")
    assert not cluster.layout.admin_password.exists()


def test_up_adds_nodes_and_refuses_to_leave_one_out(cluster: ClusterRun) -> None:
    cluster.start("--nodes", "1")
    cluster.interrupt()
    cluster.start("--nodes", "2")
    assert [node.zone for node in cluster.record.nodes] == ["zone-1", "zone-2"]
    cluster.interrupt()
    status, output = cluster.run("up", "--nodes", "1")
    assert (status, "node-2" in output) == (1, True), output


def test_a_number_out_of_range_is_wrong_usage(cluster: ClusterRun) -> None:
    status, output = cluster.run("up", "--workers", "0")
    assert (status, "--workers 0 is out of range" in output, "--help" in output) == (2, True, True), output


def test_up_is_refused_when_the_front_port_is_taken(cluster: ClusterRun) -> None:
    with listen(cluster.port):
        status, output = cluster.run("up", "--port", str(cluster.port))
    assert status == 1
    assert f"port {cluster.port} " in output
    assert "--port" in output
    assert cluster.find_running() == set()


def test_up_is_refused_when_another_cluster_shares_the_front_port_though_its_nodes_died(
    cluster: ClusterRun, tmp_path: Path
) -> None:
    cluster.start("--nodes", "1")
    pid = cluster.pid("node-1")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: cluster.pid("node-1") is None, "the notice of the death")
    other = ClusterRun(tmp_path / "other")
    status, output = other.run("up", "--port", str(cluster.port))
    assert (status, f"port {cluster.port} " in output) == (1, True), output


def test_up_works_again_after_it_was_killed(cluster: ClusterRun) -> None:
    cluster.start("--nodes", "2")
    before = cluster.record
    cluster.kill()
    assert len(cluster.find_running()) >= 3
    cluster.start()
    after = cluster.record
    assert after.postgres_pid == before.postgres_pid
    assert not {node.pid for node in after.nodes} & {node.pid for node in before.nodes}
    assert not any(processes.is_running(node.pid) for node in before.nodes if node.pid is not None)
    assert cluster.interrupt() == 0
    assert cluster.find_running() == set()


def test_down_stops_everything_when_up_was_killed_and_again_nothing(cluster: ClusterRun) -> None:
    cluster.start("--nodes", "2")
    cluster.kill()
    status, output = cluster.run("down")
    assert (status, output.strip().endswith("Stopped.")) == (0, True), output
    assert cluster.find_running() == set()
    assert cluster.record.postgres_pid is None
    status, output = cluster.run("down")
    assert (status, "Nothing was running" in output) == (0, True), output


def test_down_is_fine_when_there_is_no_cluster(tmp_path: Path) -> None:
    run = ClusterRun(tmp_path / "data")
    status, output = run.run("down")
    assert (status, "Nothing was running" in output) == (0, True), output
    assert not run.layout.directory.exists()


def test_detached_cluster_runs_on_until_down(cluster: ClusterRun) -> None:
    status, output = cluster.run("up", "--port", str(cluster.port), "--nodes", "1", "--detach")
    assert status == 0, output
    assert cluster.record.front_url in output
    supervisor = cluster.record.up_pid
    assert supervisor is not None
    assert os.getsid(supervisor) == supervisor
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=5):
        pass
    os.kill(cluster.pid("node-1") or 0, signal.SIGKILL)
    wait_for(lambda: "was killed by SIGKILL" in cluster.layout.up_log.read_text(), "the notice of the death")
    status, output = cluster.run("down")
    assert status == 0, output
    assert cluster.find_running() == set()
    assert not processes.is_running(supervisor)


@pytest.mark.parametrize("option", [[], ["--detach"]])
def test_up_fails_with_the_reason_and_leaves_nothing_running_when_a_node_does_not_start(
    cluster: ClusterRun, option: list[str]
) -> None:
    cluster.layout.node_directory("node-2").mkdir(parents=True)
    cluster.behave("node-2", "crash")
    status, output = cluster.run("up", "--port", str(cluster.port), *option)
    assert status == 1
    assert "node-2 ended with status 1" in output
    assert "this disk is not mine" in output
    assert cluster.find_running() == set()


def test_ctrl_c_stops_everything_while_the_cluster_is_starting(cluster: ClusterRun) -> None:
    cluster.layout.node_directory("node-1").mkdir(parents=True)
    cluster.behave("node-1", "unready")
    with cluster.output.open("wb") as output:
        cluster.process = subprocess.Popen(
            cluster.arguments("up", "--port", str(cluster.port)), stdout=output, stderr=output, start_new_session=True
        )
    wait_for(lambda: "Waiting for node-1 ..." in cluster.text(), "the wait for a node")
    assert cluster.interrupt() == 1
    assert "before the cluster was ready" in cluster.text()
    assert cluster.find_running() == set()


def test_closed_terminal_stops_everything(cluster: ClusterRun) -> None:
    terminal, side = pty.openpty()
    command = ["setsid", "--ctty", *cluster.arguments("up", "--port", str(cluster.port), "--nodes", "2")]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        cluster.process = process
        seen = b""
        while b"Stop it with Ctrl-C" not in seen:
            seen += os.read(terminal, 4096)
        assert len(cluster.find_running()) >= 4
        os.close(terminal)
        process.wait(60)
    assert cluster.find_running() == set()
    assert cluster.record.up_pid is None


@pytest.mark.parametrize("option", [[], ["--detach"]])
def test_up_goes_on_when_nobody_reads_its_output_any_more(cluster: ClusterRun, option: list[str]) -> None:
    command = cluster.arguments("up", "--port", str(cluster.port), "--nodes", "1", *option)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        cluster.process = process
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        wait_for(lambda: cluster.layout.read_record() is not None and cluster.pid("node-1"), "the start of the node")
        wait_for(lambda: is_serving(cluster), "the start of the cluster")
        assert cluster.run("down")[0] == 0
    assert cluster.find_running() == set()


def is_serving(cluster: ClusterRun) -> bool:
    try:
        socket.create_connection(("127.0.0.1", cluster.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_second_ctrl_c_kills_a_node_that_does_not_end(cluster: ClusterRun) -> None:
    cluster.layout.node_directory("node-1").mkdir(parents=True)
    cluster.behave("node-1", "stubborn")
    cluster.start("--nodes", "2")
    assert cluster.process is not None
    cluster.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping node-1, node-2" in cluster.text(), "the stop")
    assert cluster.interrupt() == 0
    assert "node-1 was killed: somebody asked twice" in cluster.text()
    assert cluster.find_running() == set()


@as_root
def test_ordinary_user_brings_a_cluster_up_and_down(users: list[OrdinaryUser]) -> None:
    user = users[0]
    data, port = str(user.home / "data"), str(find_front_port())
    status, output = user.run(["-m", "tests.launch.driver", "up", "--data", data, "--port", port, "--detach"])
    assert status == 0, output
    assert f"http://127.0.0.1:{port}" in output
    files = [path for path in Path(data).rglob("*") if "postgres/data/" not in str(path)]
    assert {path.stat().st_uid for path in files} == {user.uid}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}
    status, output = user.run(["-m", "tests.launch.driver", "down", "--data", data])
    assert (status, "Stopped." in output) == (0, True), output
