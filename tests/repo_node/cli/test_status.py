from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import TOKEN, FakeNode, Fault

STATUS = ("GET", "/api/holdfast/status")


def make_status(**changes: Any) -> dict[str, Any]:
    nodes = [
        {
            "id": f"node{number}",
            "zone": f"zone{number}",
            "url": f"http://127.0.0.1:808{number}",
            "up": number != 3,
            "version": "0.1.0",
            "heartbeat_age_seconds": 0.7 if number != 3 else 3725.0,
        }
        for number in (1, 2, 3)
    ]
    shards = [
        {
            "id": number,
            "uid": "0190a6c2-0000-7000-8000-000000000000",
            "node": f"node{(number + 1) // 2}",
            "zone": f"zone{(number + 1) // 2}",
            "path": f"/srv/holdfast/data/shards/shard-{number}",
            "state": "draining" if number == 2 else "active",
            "up": number < 5,
            "writable": number not in (2, 3),
            "weight": 1.0,
            "capacity_bytes": 4_000_787_030_016,
            "free_bytes": 1_234_567_890_123,
            "replicas": 1_234_567,
        }
        for number in range(1, 7)
    ]
    answer = {
        "cluster_id": "6f1c2f5e-8a57-4c1c-9c1e-1f2f3a4b5c6d",
        "nodes": nodes,
        "shards": shards,
        "blobs": {"count": 1234, "bytes": 5 << 30, "missing_copies": 7, "short": 5},
        "repair_queue": 12,
    }
    return answer | changes


def test_status_shows_the_cluster_in_80_columns(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, make_status())
    result = holdfast("status")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    words = [" ".join(line.split()) for line in lines]
    assert "1,234 blobs, 5.0 GiB" in words
    assert "Missing: 7 copies, of 5 blobs; 12 in the repair queue." in words
    assert "Down: node3" in words
    assert "zone1 1 of 1 2 of 2 2,469,134 2.2 TiB 7.3 TiB" in words
    assert "node3 zone3 down 1 h 2 min ago 0.1.0 http://127.0.0.1:8083" in words
    assert "2 zone1 node1 draining 1,234,567 1.1 TiB 3.6 TiB 1" in words
    assert "3 zone2 node2 active, no writes 1,234,567 1.1 TiB 3.6 TiB 1" in words
    assert "5 zone3 node3 active, down 1,234,567 1.1 TiB 3.6 TiB 1" in words


def test_status_shows_paths_where_there_is_room(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, make_status())
    assert "/srv/holdfast" not in holdfast("status").stdout
    holdfast.environment["COLUMNS"] = "140"
    assert "/srv/holdfast/data/shards/shard-4" in holdfast("status").stdout


def test_status_says_that_no_copy_is_missing(holdfast: Holdfast, node: FakeNode) -> None:
    blobs = {"count": 1, "bytes": 10, "missing_copies": 0, "short": 0}
    node.json_answers[STATUS] = (200, make_status(blobs=blobs, repair_queue=0))
    assert "No copy is missing.\n" in holdfast("status").stdout


def test_status_does_not_say_that_no_copy_is_missing_while_a_disk_is_away(holdfast: Holdfast, node: FakeNode) -> None:
    blobs = {"count": 1, "bytes": 10, "missing_copies": 0, "short": 0}
    answer = make_status(blobs=blobs, repair_queue=0)
    answer["shards"][0] |= {"up": False, "writable": False, "trouble": "/srv/1 is empty: is its disk mounted?"}
    node.json_answers[STATUS] = (200, answer)
    shown = " ".join(holdfast("status").stdout.split())
    assert "No copy is missing" not in shown
    assert "No copy is known to be missing, but some are on shards that are unavailable." in shown


def test_status_shows_a_shard_that_never_reported(holdfast: Holdfast, node: FakeNode) -> None:
    answer = make_status()
    answer["shards"][0] |= {"capacity_bytes": None, "free_bytes": None}
    node.json_answers[STATUS] = (200, answer)
    words = [" ".join(line.split()) for line in holdfast("status").stdout.splitlines()]
    assert "1 zone1 node1 active 1,234,567 ? ? 1" in words


def test_status_shows_names_as_they_are_and_no_control_characters(holdfast: Holdfast, node: FakeNode) -> None:
    answer = make_status()
    answer["nodes"][0] |= {"version": "[red]1[/red]", "zone": "a\x1b[31mb"}
    node.json_answers[STATUS] = (200, answer)
    shown = holdfast("status").stdout
    assert "[red]1[/red]" in shown
    assert "\x1b" not in shown
    assert "a\\x1b[31mb" in shown


def test_status_json_is_the_answer(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, make_status())
    assert json.loads(holdfast("status", "--json").stdout) == make_status()


def test_status_asks_again_when_the_server_is_busy(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, make_status())
    node.fail("GET", Fault(status=503, message="busy"))
    result = holdfast("status", "--json")
    assert result.exit_code == 0
    assert "busy (status 503, request request-77); again in" in result.stderr


def test_status_refuses_what_is_no_status(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, ["what is this"])
    result = holdfast("status")
    assert result.exit_code == 1
    assert "did not answer as a Holdfast node does" in result.stderr


@pytest.mark.parametrize("interval", ["0", "-1", "x"])
def test_status_refuses_a_bad_interval(holdfast: Holdfast, interval: str) -> None:
    assert holdfast("status", "--watch", "--interval", interval).exit_code == 2


def test_status_watch_goes_on_over_failures_until_it_is_interrupted(
    nowhere: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.json_answers[STATUS] = (200, make_status())
    node.fail("GET", Fault(), Fault(status=400, message="not now"))
    command = [sys.executable, "-m", "repo_node", "status", "--watch", "--json", "--interval", "0.2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=dict(os.environ, HOLDFAST_URL=node.url, HOLDFAST_TOKEN=TOKEN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background hear no interruption, nor does what they start, unless told to.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    answers = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert answers == [make_status(), {"error": "not now (status 400, request request-77)"}, make_status()]
    assert (process.returncode, complaints) == (0, "")


def test_shards_that_cannot_be_used_are_named_with_the_reason(holdfast: Holdfast, node: FakeNode) -> None:
    answer = make_status()
    answer["shards"][0] |= {"up": False, "writable": False, "trouble": "/srv/1 is empty: is its disk mounted?"}
    answer["shards"][1] |= {"writable": False, "trouble": "its file system is mounted read-only"}
    node.json_answers[STATUS] = (200, answer)
    words = " ".join(holdfast("status").stdout.split())
    assert "is unavailable: /srv/1 is empty: is its disk mounted?" in words
    assert "takes no writes: its file system is mounted read-only" in words
