"""``holdfast shard`` and ``holdfast node list|drain|activate|remove``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repo_node import config as node_config
from repo_node.cli import shard as command
from repo_node.keys import new_cluster_key
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode, Fault
from tests.repo_node.cli.test_node import TOML

PATH = "/api/holdfast/shards"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "POLL_SECONDS", 0.02)


def row(number: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "node": "node-1",
        "zone": "a",
        "node_up": True,
        "path": "/srv/3",
        "weight": 1.5,
        "state": "active",
        "since": "2026-01-01T00:00:00.000Z",
        "reason": "",
        "replaced": False,
        "silent_seconds": 0.5,
        "replicas": 1234,
        "free_bytes": 1 << 40,
        "capacity_bytes": 1 << 41,
        "walk": None,
    } | changes


def list_of(node: FakeNode, *turns: list[dict[str, Any]]) -> None:
    """Answer each look with the next of ``turns``, the last one for ever."""
    left = list(turns)

    class Turning(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            if key != ("GET", PATH):
                return super().get(key, default)
            return (200, {"shards": left.pop(0) if len(left) > 1 else left[0]})

    node.json_answers = Turning(node.json_answers)


def accept(node: FakeNode, method: str, path: str, outcome: str = "done", status: int = 200) -> None:
    node.json_answers[method, f"{PATH}/{path}"] = (status, {"shard": 3, "outcome": outcome})


def test_shards_are_listed_with_what_there_is_to_know(holdfast: Holdfast, node: FakeNode) -> None:
    walk = {"kind": "forget", "walked": 9, "kept_back": 2, "passes": 1}
    down = row(4, node_up=False, silent_seconds=400.0, state="lost", reason="verdict: silent", walk=walk)
    list_of(node, [row(), down, row(5, weight=None, free_bytes=None)])
    result = holdfast("shard", "list")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "3 node-1 active 1,234 1.0 TiB 1.5" in words
    assert "silent for 6 min 40 s" in words and "2 copies still needed" in words
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads(holdfast("shard", "list", "--json").stdout)["shards"][1]["id"] == 4


def test_drain_waits_until_nothing_is_left(holdfast: Holdfast, node: FakeNode) -> None:
    accept(node, "POST", "3/drain")
    list_of(node, [row()], [row(replicas=7)], [row(replicas=0)])
    result = holdfast("shard", "drain", "3", "--wait")
    assert result.exit_code == 0, result.output
    assert "1,234 copies left" in result.stderr
    assert "Shard 3 is drained. Take it out of its node's file and `holdfast node reload` it" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "path", "outcome", "words"),
    [
        (("readonly", "3"), "3/readonly", "done", "takes no new copies"),
        (("activate", "3"), "3/activate", "done", "is in use"),
        (("activate", "3"), "3/activate", "returning", "coming back"),
        (("replace", "3", "--yes"), "3/replace", "done", "`holdfast node reload node-1 --shard /srv/3`"),
    ],
)
def test_shard_is_changed(
    holdfast: Holdfast, node: FakeNode, arguments: tuple[str, ...], path: str, outcome: str, words: str
) -> None:
    accept(node, "POST", path, outcome)
    list_of(node, [row()])
    result = holdfast("shard", *arguments)
    assert result.exit_code == 0, result.output
    assert words in result.stdout


@pytest.mark.parametrize("verb", ["replace", "remove"])
def test_what_cannot_be_undone_is_asked_first(holdfast: Holdfast, node: FakeNode, verb: str) -> None:
    list_of(node, [row()])
    result = holdfast("shard", verb, "3", input="n\n")
    assert result.exit_code == 1 and {seen.method for seen in node.seen} == {"GET"}
    assert "shard 3 (/srv/3 on node-1, 1,234 copies)" in result.stdout


@pytest.mark.parametrize("verb", ["replace", "remove"])
def test_nobody_is_asked_about_a_shard_that_is_not_there(holdfast: Holdfast, node: FakeNode, verb: str) -> None:
    list_of(node, [row()])
    result = holdfast("shard", verb, "99")
    assert result.exit_code == 1 and "There is no shard 99" in result.stderr
    assert "?" not in result.stdout


def test_copies_that_were_not_counted_are_marked(holdfast: Holdfast, node: FakeNode) -> None:
    list_of(node, [row(replicas=1_204_000, replicas_counted=False)])
    assert "~1,204,000" in holdfast("shard", "list").stdout


def test_refusal_is_shown(holdfast: Holdfast, node: FakeNode) -> None:
    list_of(node, [row()])
    node.fail("DELETE", Fault(status=409, message="Shard 3 is in use: drain it first"))
    result = holdfast("shard", "remove", "3", "-y")
    assert result.exit_code == 1 and "drain it first" in result.stderr


def test_remove_of_a_lost_shard_waits_until_it_is_gone_or_needed(holdfast: Holdfast, node: FakeNode) -> None:
    accept(node, "DELETE", "3", "forgetting", 202)
    walk = {"kind": "forget", "walked": 0, "kept_back": 0, "passes": 0}
    list_of(node, [row(walk=walk)], [row(walk=walk | {"passes": 1})], [row(4)])
    result = holdfast("shard", "remove", "3", "-y")
    assert result.exit_code == 0 and "Shard 3 is removed." in result.stdout
    assert "Take /srv/3 out of the file of node-1" in result.stdout
    accept(node, "DELETE", "3", "forgetting", 202)
    list_of(node, [row(walk=walk | {"passes": 2, "kept_back": 5})])
    result = holdfast("shard", "remove", "3", "-y")
    assert result.exit_code == 1 and "5 blobs with a copy on it are not whole elsewhere" in result.stderr


def test_last_copies_are_given_up_by_their_number(holdfast: Holdfast, node: FakeNode) -> None:
    accept(node, "DELETE", "3", "forgetting", 202)
    accept(node, "POST", "3/give-up", "forgetting", 202)
    lost = {"shard": 3, "blobs": 2, "artifacts": 3, "paths": ["generic-local/a", "generic-local/b"]}
    node.json_answers["GET", f"{PATH}/3/last-copies"] = (200, lost)
    kept = row(walk={"kind": "forget", "walked": 9, "kept_back": 5, "last_copies": 2, "passes": 1})
    list_of(node, [kept])
    result = holdfast("shard", "remove", "3", "-y")
    assert result.exit_code == 1 and "2 of them have no other copy" in result.stderr
    assert "--give-up-last-copies" in result.stderr
    list_of(node, [kept], [kept], [])
    result = holdfast("shard", "remove", "3", "-y", "--give-up-last-copies", input="2\n")
    assert result.exit_code == 0, result.output
    assert "2 blobs and 3 artifacts" in result.stdout and "generic-local/b" in result.stdout
    assert "Shard 3 is removed." in result.stdout
    list_of(node, [kept], [kept], [])
    assert holdfast("shard", "remove", "3", "-y", "--give-up-last-copies", "--count", "2").exit_code == 0
    assert [body for body in node.bodies if body] == [{"copies": 2}] * 2


def test_shard_that_cannot_be_used_is_listed_with_what_is_wrong_with_it(holdfast: Holdfast, node: FakeNode) -> None:
    gone = row(4, available=False, trouble="/srv/4 is empty: is its disk mounted?", silent_seconds=90.0)
    list_of(node, [row(3, available=True, trouble="its file system is mounted read-only"), gone])
    words = " ".join(holdfast("shard", "list").stdout.split())
    assert "takes no writes" in words and "read-only" in words
    assert "unavailable for" in words and "is empty" in words


def test_node_is_told_to_read_its_file_again(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", "/api/holdfast/nodes/node-1/reload"] = (202, {"node": "node-1", "outcome": "asked"})
    result = holdfast("node", "reload", "node-1")
    assert result.exit_code == 0 and "node-1 reads its list of shards again" in result.stdout
    assert holdfast("node", "reload", "node-1", "--shard", "/srv/3").exit_code == 0
    assert node.bodies[-2:] == [{}, {"shard": "/srv/3"}]


def test_add_writes_a_section_that_can_be_loaded(nowhere: Holdfast, tmp_path: Path) -> None:
    key = tmp_path / "cluster.key"
    key.write_text(new_cluster_key())
    key.chmod(0o600)
    config = tmp_path / "node.toml"
    config.write_text(TOML)
    result = nowhere("shard", "add", str(tmp_path / "disk3"), "--config", str(config), "--weight", "2")
    assert result.exit_code == 0, result.output
    assert "was not told" in result.stdout and "holdfast node reload node1" in result.stdout
    added = node_config.load(config).shards[-1]
    assert (added.path, added.weight, added.reserve_bytes) == (tmp_path / "disk3", 2, 1 << 30)
    again = nowhere("shard", "add", str(tmp_path / "disk3"), "--config", str(config))
    assert again.exit_code == 1 and "is a shard of this node already" in again.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    full = nowhere("shard", "add", str(tmp_path / "full"), "--config", str(config))
    assert full.exit_code == 1 and "is not empty" in full.stderr


def test_nodes_are_listed_drained_and_removed(holdfast: Holdfast, node: FakeNode) -> None:
    shards = [{"id": 1, "state": "active", "replicas": 1000}, {"id": 2, "state": "lost", "replicas": 200}]
    one = {"id": "node-1", "zone": "a", "up": True, "version": "1", "url": "", "heartbeat_age_seconds": 1}
    node.json_answers["GET", "/api/holdfast/nodes"] = (200, {"nodes": [one | {"shards": shards}]})
    result = holdfast("node", "list")
    assert result.exit_code == 0, result.output
    assert "node-1 a up 1 1,200 1 active, 2 lost" in " ".join(result.stdout.split())
    for action, words in (("drain", "are draining"), ("activate", "are in use")):
        node.json_answers["POST", f"/api/holdfast/nodes/node-1/{action}"] = (200, {"node": "node-1", "shards": {}})
        assert words in holdfast("node", action, "node-1").stdout
    told = one | {"shards": shards, "leaving": True, "schema_version": 8}
    node.json_answers["GET", "/api/holdfast/nodes"] = (200, {"nodes": [told]})
    assert "node-1 a leaving 1, schema 8 1,200" in " ".join(holdfast("node", "list").stdout.split())
    node.json_answers["DELETE", "/api/holdfast/nodes/node-1"] = (200, {"node": "node-1", "outcome": "removed"})
    assert "is removed" in holdfast("node", "remove", "node-1").stdout
    assert holdfast("node").exit_code == 2
    assert holdfast("node", "--config", "x.toml", "list").exit_code == 2


def nodes_of(node: FakeNode, *turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Answer each look at the nodes with the next of ``turns``; return those that nobody has seen."""
    left = list(turns)

    class Turning(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            if key == ("GET", "/api/holdfast/nodes"):
                return (200, {"nodes": left.pop(0)})
            return super().get(key, default)

    node.json_answers = Turning(node.json_answers)
    return left


def test_draining_node_is_waited_for_until_no_copies_are_left(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", "/api/holdfast/nodes/node-1/drain"] = (200, {"node": "node-1", "shards": {}})
    lost = {"id": 2, "state": "lost", "replicas": 200}

    def with_shard(**shard: Any) -> list[dict[str, Any]]:
        return [{"id": "node-1", "shards": [{"id": 1, "state": "draining", "replicas": 0} | shard, lost]}]

    turns = nodes_of(node, with_shard(replicas=1), with_shard(replicas_counted=False), with_shard())
    result = holdfast("node", "drain", "node-1", "--wait")
    assert (result.exit_code, turns) == (0, []), result.output
    assert result.stdout.endswith("No copies are left on node-1.\n") and "node-1: 1 copy left" in result.stderr
    nodes_of(node, with_shard(state="active", replicas=1))
    result = holdfast("node", "drain", "node-1", "--wait")
    assert result.exit_code == 1 and "taken into use again" in result.stderr


def test_node_is_stopped_and_waited_for(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", "/api/holdfast/nodes/node-1/stop"] = (202, {"node": "node-1", "outcome": "asked"})
    assert holdfast("node", "stop", "node-1").stdout == "Node node-1 is leaving.\n"
    turns = nodes_of(node, *([{"id": "node-1", "up": up}, {"id": "node-2", "up": True}] for up in (True, True, False)))
    assert holdfast("node", "stop", "node-1", "--wait").stdout == "Node node-1 is leaving.\nNode node-1 has left.\n"
    assert turns == []


def test_weight_is_sent(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["PUT", f"{PATH}/3/weight"] = (200, {"shard": 3, "weight": 2.5})
    result = holdfast("shard", "weight", "3", "2.5")
    assert result.exit_code == 0 and "has the weight 2.5 now" in result.stdout
    assert node.bodies == [{"weight": 2.5}]
    assert holdfast("shard", "weight", "3", "0").exit_code == 2
