"""``holdfast up`` and ``down`` with real nodes, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import wait_until
from tests.cluster.up import UpCluster


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpCluster]:
    made = UpCluster(tmp_path / "data")
    yield made
    made.down()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_up_serves_and_a_second_up_finds_the_same_data(up: UpCluster) -> None:
    printed = up.up()
    record = up.record
    assert [node["zone"] for node in record["nodes"]] == ["zone-1", "zone-2", "zone-3"]
    assert all(node["url"] in printed for node in record["nodes"])
    pasted = re.search(r"^\s*(echo hello \| curl .*)$", printed, re.MULTILINE)
    assert pasted
    assert '"size": "6"' in subprocess.run(pasted[1], shell=True, capture_output=True, text=True, check=True).stdout
    for path in (up.data / "cluster.json", up.data / "admin-password", *up.data.glob("nodes/*/node.toml")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    up.down()
    assert not any(alive(node["pid"]) for node in record["nodes"]) and not alive(record["postgres_pid"])
    up.up()
    assert up.curl(up.url("hello.txt")) == b"hello\n"


def test_status_settings_and_transfers_work_on_a_cluster_of_up(up: UpCluster, tmp_path: Path) -> None:
    up.up("--nodes", "2", "--zones", "2", "--shards", "1", "--redundancy", "1")
    data = ("--data", str(up.data))
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(5_000_000))
    (source / "empty").touch()
    up.holdfast("upload", str(source), "generic-local/tree/", *data)
    up.holdfast("download", "generic-local/tree/source", "-o", str(tmp_path / "back"), *data)
    copies = list((tmp_path / "back").rglob("large"))
    assert [copy.read_bytes() for copy in copies] == [(source / "large").read_bytes()]
    status = json.loads(up.holdfast("status", "--json", *data).stdout)
    assert status["blobs"] == {"count": 2, "bytes": 5_000_000, "missing_copies": 0, "short": 0, "unreferenced": 0}
    assert len(status["shards"]) == 2
    up.holdfast("settings", "set", "redundancy", "2", *data)
    wait_until(lambda: "2" in up.holdfast("settings", "get", "redundancy", *data).stdout, "the setting", 5)


def test_killed_node_is_named_and_starts_again_by_hand(up: UpCluster) -> None:
    up.up()
    up.curl("-T", __file__, up.url("test_up.py"))
    victim = up.record["nodes"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: victim["config"] in (up.data / "up.log").read_text(), "up to say how to start it", 10)
    for _ in range(5):
        assert up.curl(up.url("test_up.py")) == Path(__file__).read_bytes()
    log = (up.data / "by-hand.log").open("wb")
    node = subprocess.Popen([sys.executable, "-m", "repo_node", "node", "--config", victim["config"]], stderr=log)
    ready = f"{victim['url']}/artifactory/api/v1/system/readiness"
    wait_until(lambda: subprocess.run(["curl", "-sf", "-o", "/dev/null", ready]).returncode == 0, "the node", 30)
    assert up.curl(f"{victim['url']}/artifactory/generic-local/test_up.py") == Path(__file__).read_bytes()
    node.terminate()
    assert node.wait(20) == 0


def test_next_up_works_after_kill_9_of_up(up: UpCluster) -> None:
    up.up()
    up.curl("-T", __file__, up.url("kept"))
    os.kill(up.record["up_pid"], signal.SIGKILL)
    up.up()
    assert up.curl(up.url("kept")) == Path(__file__).read_bytes()


def test_second_cluster_on_the_front_port_is_refused(up: UpCluster, tmp_path: Path) -> None:
    up.up("--nodes", "1", "--zones", "1")
    refused = up.holdfast("up", "--detach", "--data", str(tmp_path / "other"), "--port", str(up.port), check=False)
    assert refused.returncode != 0
    assert str(up.port) in refused.stderr + refused.stdout


def test_data_under_a_home_of_mode_0700_changes_no_permission(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    made = UpCluster(home / "deep" / "data")
    before = {path: path.stat().st_mode for path in (home, *home.parents)}
    try:
        made.up("--nodes", "1", "--zones", "1")
        made.curl("-T", __file__, made.url("kept"))
    finally:
        made.down()
    assert {path: path.stat().st_mode for path in before} == before
