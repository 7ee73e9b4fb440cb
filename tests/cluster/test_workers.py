"""A node of several processes: whichever of them dies, freezes or is asked, it is one node."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import PASSWORD, Cluster, NodeProcess, cluster, curl, is_ready, until, wait_until
from tests.cluster.test_kill_node import begin_upload
from tests.sharding import disks
from tests.tools import open_below, require_root

CONNECTIONS = 40
"""Of its own each: the kernel spreads them over all processes, so that hardly ever one is missed."""


@pytest.fixture
def manned(tmp_path: Path, dsn: str) -> Iterator[Cluster]:
    """One node of three processes."""
    with cluster(tmp_path / "cluster", dsn, nodes=1, workers=3) as made:
        yield made


@pytest.fixture
def two_manned(tmp_path: Path, dsn: str) -> Iterator[Cluster]:
    """Two nodes of two processes each, in two zones."""
    with cluster(tmp_path / "cluster", dsn, nodes=2, workers=2) as made:
        yield made


def metric(node: NodeProcess, name: str) -> float:
    """Return the sum of a metric's series, as some process of the node tells it."""
    code, text = curl(f"{node.url}/metrics")
    assert code == 200, text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text.decode(), re.MULTILINE))


def processes_that_answered(node: NodeProcess) -> set[int]:
    lines = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
    return {line["process"] for line in lines if line["event"] == "request"}


def ask_all(node: NodeProcess, *arguments: str) -> set[int]:
    """Ask every process of a node the same; return the statuses they gave."""
    return {curl(*arguments, wait_seconds=10)[0] for _ in range(CONNECTIONS)}


def test_every_process_serves_and_their_metrics_add_up(manned: Cluster) -> None:
    node = manned.nodes[0]
    for number in range(CONNECTIONS):
        curl("-X", "PUT", "-d", f"body {number}", f"{node.url}/artifactory/generic-local/{number}", fail=True)
    assert processes_that_answered(node) == {0, 1, 2}
    puts = 'holdfast_http_requests_total{method="PUT",route="[^"]*",status="201"}'
    assert {metric(node, puts) for _ in range(CONNECTIONS)} == {CONNECTIONS}
    assert metric(node, "holdfast_workers_up") == 2
    assert metric(node, "holdfast_node_up") == 1
    # What an ended one had counted stays.
    os.kill(node.worker_pids()[0], signal.SIGKILL)
    wait_until(lambda: metric(node, "holdfast_worker_ends_total") == 1, "the end to be counted", 10)
    wait_until(lambda: metric(node, "holdfast_workers_up") == 2, "another to take its place", 20)
    assert {metric(node, puts) for _ in range(CONNECTIONS)} == {CONNECTIONS}


def test_settings_and_revoked_tokens_reach_every_process_within_a_second(manned: Cluster) -> None:
    node = manned.nodes[0]
    base = f"{node.url}/artifactory/api/holdfast"
    body = curl("-X", "POST", "-d", '{"scopes": ["read", "write"]}', f"{base}/tokens", fail=True)[1]
    token = json.loads(body)
    listing = ("-u", "", "-H", f"Authorization: Bearer {token['token']}", f"{node.url}/artifactory/api/repositories")
    assert ask_all(node, *listing) == {200}
    curl("-X", "DELETE", f"{base}/tokens/{token['id']}", fail=True)
    time.sleep(1)
    assert ask_all(node, *listing) == {401}
    put = ("-X", "PUT", "-d", "x", f"{node.url}/artifactory/generic-local/one")
    assert ask_all(node, *put) == {201}
    manned.set_setting("read_only_reason", '"a test"')
    time.sleep(1)
    assert ask_all(node, *put) == {503}


async def test_workers_killed_again_and_again_cost_nothing_acknowledged(two_manned: Cluster) -> None:
    chance = random.Random(7)

    async def kill_workers() -> None:
        for _ in range(6):
            await asyncio.sleep(1.5)
            pids = [pid for node in two_manned.nodes for pid in node.worker_pids()]
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)

    async with LedgerClient([two_manned.url], seed=3, retries=2) as client:
        await under_load(client, kill_workers)
        assert len(client.ledger.acknowledged) > 20
        await until(lambda: all(len(node.worker_pids()) == 1 for node in two_manned.nodes), "the workers", 30)
        await client.verify()
    assert client.ledger.wrong == []
    assert all(node.running for node in two_manned.nodes)
    await until(lambda: not any(node.staged_files() for node in two_manned.nodes), "nothing to be left staged", 20)


async def test_what_an_ended_worker_was_staging_goes_and_what_others_stage_stays(manned: Cluster) -> None:
    node = manned.nodes[0]
    uploads = []
    for number in range(CONNECTIONS):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        await begin_upload(writer, f"generic-local/{number}", 8_000_000)
        writer.write(b"x" * 4_000_000)
        await writer.drain()
        uploads.append(finish(reader, writer))
    await until(lambda: len(node.staged_files()) == 2 * CONNECTIONS, "every upload to be staged twice", 30)
    staged_by = {path.parent.name for path in node.staged_files()}
    assert staged_by == {"tmp", "worker-1-1", "worker-2-1"}
    os.kill(node.worker_pids()[0], signal.SIGKILL)
    await until(lambda: len({path.parent.name for path in node.staged_files()}) == 2, "the files to go", 20)
    left = len(node.staged_files()) // 2
    assert 0 < left < CONNECTIONS
    statuses = await asyncio.gather(*uploads)
    assert statuses.count("201") == left


async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Send the rest of an upload's body; return the status, or nothing when the connection is broken."""
    try:
        writer.write(b"x" * 4_000_000)
        await writer.drain()
        line = (await reader.readline()).decode()
    except ConnectionError:
        return ""
    finally:
        writer.close()
    return line.split()[1] if line else ""


async def test_frozen_worker_is_ended_and_replaced(manned: Cluster) -> None:
    node = manned.nodes[0]
    manned.set_setting("heartbeat_seconds", "0.5")
    manned.set_setting("node_down_seconds", "2")
    victim = node.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    await until(lambda: victim not in node.worker_pids(), "the frozen worker to be ended", 20)
    await until(lambda: len(node.worker_pids()) == 2, "another to take its place", 20)
    async with LedgerClient([node.url], timeout_seconds=10) as client:
        for number in range(CONNECTIONS):
            assert await client.put(f"generic-local/{number}", b"x")
        assert not client.ledger.failures


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Have whoever writes to a file system wait in the kernel, where no signal reaches it."""
    subprocess.run(["fsfreeze", "-f", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(path)], check=True)


def hangs_in_the_kernel(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return any((one / "stat").read_text().rpartition(")")[2].split()[0] == "D" for one in threads)


def test_worker_that_is_killed_and_cannot_end_is_stood_in_for(tmp_path: Path, dsn: str) -> None:
    require_root("a file system has to be mounted and frozen")
    with ExitStack() as stack:
        disk = stack.enter_context(disks.mounted_ext4(tmp_path / "disk", size_mib=64))
        made = stack.enter_context(cluster(tmp_path / "cluster", dsn, nodes=0))
        node = made.add_node(shard_paths=[disk / "shard", tmp_path / "healthy"], workers=2)
        made.start()
        made.set_setting("heartbeat_seconds", "0.5")
        made.set_setting("node_down_seconds", "2")
        [victim] = node.worker_pids()
        stack.enter_context(frozen(disk))
        put = ("curl", "-s", "-m", "60", "-u", f"admin:{PASSWORD}", "-T", node.config)
        for number in range(CONNECTIONS):
            url = f"{node.url}/artifactory/generic-local/{number}"
            stack.callback(subprocess.Popen([*put, url], stdout=subprocess.DEVNULL).kill)
        wait_until(lambda: hangs_in_the_kernel(victim), "a thread of the worker to hang", 20)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "a worker does not answer" in node.log.read_text(), "its silence to be noticed", 20)
        ping = f"{node.url}/artifactory/api/system/ping"
        assert {curl(ping, wait_seconds=5)[0] for _ in range(CONNECTIONS)} == {200}
        assert Path(f"/proc/{victim}").exists(), "it has ended: nothing was shown"


def test_workers_end_with_their_main_process_and_the_next_start_works(manned: Cluster) -> None:
    node = manned.nodes[0]
    curl("-X", "PUT", "-d", "kept", f"{node.url}/artifactory/generic-local/kept", fail=True)
    assert node.process is not None
    workers = node.worker_pids()
    # One that could not end by itself is no exception.
    os.kill(workers[0], signal.SIGSTOP)
    os.kill(node.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the workers to end", 2)
    node.process.wait(10)
    node.start()
    wait_until(lambda: is_ready(node), "the next start to be ready", 30)
    assert len(node.worker_pids()) == 2
    assert curl(f"{node.url}/artifactory/generic-local/kept")[1] == b"kept"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_second_start_of_a_node_is_refused_though_its_processes_share_their_addresses(manned: Cluster) -> None:
    node = manned.nodes[0]
    command = [sys.executable, "-m", "repo_node", "node", "--config", str(node.config)]
    second = subprocess.run(command, capture_output=True, timeout=60)
    assert second.returncode == 1
    assert b"cannot listen on" in second.stderr
    assert is_ready(node) and len(node.worker_pids()) == 2


async def test_stopped_node_loses_no_request_of_any_of_its_processes(two_manned: Cluster) -> None:
    node, other = two_manned.nodes
    assert node.process is not None

    async def stop() -> None:
        await asyncio.sleep(2)
        node.signal(signal.SIGTERM)  # to all its processes, as a terminal would
        assert await asyncio.to_thread(node.process.wait, 30) == 0
        await asyncio.sleep(1)

    async with LedgerClient([two_manned.url], retries=1) as client:
        await under_load(client, stop)
        assert len(client.ledger.acknowledged) > 20
        await client.verify()
    assert client.ledger.wrong == []
    # A connection that the front had not taken yet is tried again; whatever was begun was finished.
    broken = {what for what in client.ledger.failures if what.split()[-1].isdigit()}
    assert not broken, client.ledger.failures
    assert other.running
    rows = two_manned.query("SELECT stopped_at IS NOT NULL AS stopped FROM nodes WHERE id = $1", node.id)
    assert rows[0]["stopped"]


def test_upload_in_flight_at_any_process_is_finished_before_a_stopped_node_ends(
    manned: Cluster, tmp_path: Path
) -> None:
    node, source = manned.nodes[0], tmp_path / "source"
    source.write_bytes(b"slow" * 1_500_000)
    slowly = ("curl", "-sS", "-f", "-u", f"admin:{PASSWORD}", "--limit-rate", "2m")
    uploads = [
        subprocess.Popen([*slowly, "-T", str(source), f"{node.url}/artifactory/generic-local/slow/{number}"])
        for number in range(12)
    ]
    wait_until(lambda: len({path.parent.name for path in node.staged_files()}) == 3, "uploads at all processes", 20)
    assert node.stop(60) == 0
    assert [upload.wait(10) for upload in uploads] == [0] * 12
    node.start()
    wait_until(lambda: is_ready(node), "the node to be back", 30)
    for number in range(12):
        assert curl(f"{node.url}/artifactory/generic-local/slow/{number}")[1] == source.read_bytes()


def test_node_is_ready_only_when_all_its_processes_have_started(manned: Cluster) -> None:
    node = manned.nodes[0]
    for starts in (2, 3):
        node.kill()
        node.start()
        wait_until(lambda: is_ready(node), "the node to be ready", 30)
        assert node.log.read_text().count("a worker is ready") == 2 * starts


def test_disk_taken_out_is_closed_by_every_process_before_another_node_may_have_it(manned: Cluster) -> None:
    node = manned.nodes[0]
    assert node.process is not None
    pids = [node.process.pid, *node.worker_pids()]
    whole, gone = node.config.read_text(), node.shards[1]
    assert all(open_below(gone, pid) for pid in pids)
    section = f'[[shards]]\npath = "{gone}"\nreserve_bytes = 0\n'
    assert section in whole
    reload = f"{node.url}/artifactory/api/holdfast/nodes/{node.id}/reload"
    owner = f"SELECT owner IS NULL AS released FROM shards WHERE path = '{gone}'"
    node.config.write_text(whole.replace(section, ""))
    curl("-X", "POST", "-d", "{}", reload, fail=True)
    wait_until(lambda: manned.query(owner)[0]["released"], "the shard to be released", 20)
    assert not any(open_below(gone, pid) for pid in pids), "released, and open"
    node.config.write_text(whole)
    curl("-X", "POST", "-d", "{}", reload, fail=True)
    wait_until(lambda: all(open_below(gone, pid) for pid in pids), "every process to have it open again", 20)
    wait_until(manned.is_whole, "it to take writes again", 20)
    for number in range(CONNECTIONS):
        curl("-X", "PUT", "-d", "x", f"{node.url}/artifactory/generic-local/{number}", fail=True)
    assert [pid for pid in pids if not is_alive(pid)] == []
