"""How a node begins and ends."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from tests.cluster.processes import PASSWORD, Cluster, cluster, curl, free_ports, is_ready, wait_until


def test_sigterm_ends_a_node_that_waits_for_postgres(tmp_path: Path) -> None:
    made = Cluster(tmp_path / "cluster", f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/nothing")
    node = made.add_node()
    node.start()
    try:
        wait_until(lambda: "waiting for Postgres" in node.log.read_text(), "the node to wait", 20)
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < 5
    finally:
        node.kill()


def test_stopped_node_leaves_with_status_0_and_says_so_to_the_cluster(three: Cluster) -> None:
    assert three.nodes[0].stop() == 0
    rows = three.query("SELECT stopped_at IS NOT NULL AS stopped FROM nodes WHERE id = 'node-1'")
    assert rows[0]["stopped"]
    assert three.query("SELECT count(*) FROM nodes WHERE stopped_at IS NULL")[0]["count"] == 2


def test_stopped_node_waits_until_what_it_alone_has_is_copied(two: Cluster, tmp_path: Path) -> None:
    one, other = two.nodes
    assert other.stop() == 0
    for job in ("repair", "rebalance"):
        two.set_setting(f"{job}_bytes_per_second_max", 1 << 20)
    source = tmp_path / "source"
    for number in range(40):
        source.write_bytes(number.to_bytes() * (256 << 10))
        curl("-T", str(source), f"{one.url}/artifactory/generic-local/alone/{number}", fail=True)
    other.start()
    wait_until(lambda: is_ready(other), "the other node to be back", 30)
    assert two.query("SELECT count(*) FROM repair_queue")[0]["count"] > 0, "repairs are slower than this test"
    assert one.stop(30) == 0
    read = [curl(f"{other.url}/artifactory/generic-local/alone/{number}") for number in range(40)]
    assert read == [(200, number.to_bytes() * (256 << 10)) for number in range(40)]


def test_node_that_is_alone_does_not_wait_for_copies(two: Cluster, tmp_path: Path) -> None:
    one, other = two.nodes
    other.kill()
    source = tmp_path / "source"
    source.write_bytes(b"alone")
    curl("-T", str(source), f"{one.url}/artifactory/generic-local/alone", fail=True)
    is_up = "SELECT node_is_up(n) AS up FROM nodes n WHERE n.id = 'node-2'"
    wait_until(lambda: not two.query(is_up)[0]["up"], "the other one to count as down", 30)
    began = time.monotonic()
    assert one.stop(40) == 0
    assert time.monotonic() - began < 15


def test_stopped_node_says_what_could_not_be_copied_in_time(tmp_path: Path, dsn: str) -> None:
    with cluster(tmp_path / "cluster", dsn, nodes=2, http="shutdown_timeout_seconds = 1") as made:
        one, other = made.nodes
        assert other.stop() == 0
        for job in ("repair", "rebalance"):
            made.set_setting(f"{job}_bytes_per_second_max", 1 << 16)
        source = tmp_path / "source"
        for number in range(10):
            source.write_bytes(number.to_bytes() * 500_000)
            curl("-T", str(source), f"{one.url}/artifactory/generic-local/alone/{number}", fail=True)
        other.start()
        wait_until(lambda: is_ready(other), "the other node to be back", 30)
        assert one.stop(30) == 0
        assert "some content cannot be read until this node is back" in one.log.read_text()


def test_node_asked_to_stop_over_another_one_leaves_as_by_sigterm(three: Cluster) -> None:
    node = three.nodes[2]
    stop = f"{three.nodes[0].url}/artifactory/api/holdfast/nodes/{node.id}/stop"
    curl("-X", "POST", "-d", "{}", stop, fail=True)
    assert node.process is not None and node.process.wait(30) == 0
    assert three.query("SELECT stopped_at IS NOT NULL AS stopped FROM nodes WHERE id = $1", node.id)[0]["stopped"]
    assert curl("-X", "POST", "-d", "{}", stop)[0] == 409, "there is nothing to stop any more"
    node.start()
    wait_until(lambda: is_ready(node), "the node to be back: it was its former process that was asked", 30)
    time.sleep(1)
    assert is_ready(node)


def test_second_sigterm_cuts_what_is_in_flight_and_the_node_still_ends_well(three: Cluster, tmp_path: Path) -> None:
    node, source = three.nodes[1], tmp_path / "source"
    source.write_bytes(b"slow" * 10_000_000)
    url = f"{node.url}/artifactory/generic-local/slow"
    upload = subprocess.Popen(
        ["curl", "-sS", "-u", f"admin:{PASSWORD}", "--limit-rate", "1m", "-T", str(source), url],
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: any(one.staged_files() for one in three.nodes), "the upload to begin", 20)
        node.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in node.log.read_text(), "the node to leave", 20)
        assert node.process is not None and node.process.poll() is None, "it waits for the upload"
        assert node.stop() == 0
        assert upload.wait(20) != 0, "its client knows that nothing was stored"
    finally:
        upload.kill()
    assert "requests in flight are cut" in node.log.read_text()
    wait_until(lambda: not any(one.staged_files() for one in three.nodes), "nothing to be left of it", 20)
    assert curl(f"{three.nodes[0].url}/artifactory/generic-local/slow")[0] == 404


def test_second_node_of_the_same_name_is_refused_while_the_first_lives(three: Cluster) -> None:
    twin = three.add_node()
    twin.config.write_text(twin.config.read_text().replace('id = "node-4"', 'id = "node-1"'))
    twin.start()
    assert twin.process is not None
    assert twin.process.wait(30) == 1
    assert "a node named node-1 is alive elsewhere" in twin.log.read_text()
    three.nodes.remove(twin)
