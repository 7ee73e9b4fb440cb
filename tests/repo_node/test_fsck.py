"""The check of shards on real nodes: over REST and from the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from repo_node.cli import main
from sharding.files import fan_out_of
from sharding.identifiers import mint_generation
from tests.repo_node.nodes import PASSWORD, RunningCluster, errors_of, wait_until

BASE = "/artifactory/api/holdfast/fsck"


@pytest.fixture(autouse=True, scope="module")
def quick(one: RunningCluster) -> Any:
    with one.settings(reconcile_interval_seconds=0.1, judge_interval_seconds=0.1):
        yield


def check(cluster: RunningCluster, **order: Any) -> dict[int, dict[str, Any]]:
    """Order a check and wait for it; return the reports by shard."""
    answer = cluster.admin.post_json(BASE, order)
    assert answer.status == 202, answer
    request = answer.json()["request"]
    shown: dict[str, Any] = {}

    def is_finished() -> bool:
        shown.update(cluster.admin.get(f"{BASE}/{request}").json())
        return bool(shown["finished"])

    wait_until(is_finished)
    assert len(shown["checks"]) == answer.json()["shards"]
    assert all(one["error"] is None for one in shown["checks"])
    return {one["shard"]: one["report"] for one in shown["checks"]}


@pytest.fixture
def foreign(one: RunningCluster) -> Any:
    """A file on the first disk that the cluster did not put there."""
    path = one.first.disks[0] / "notes.txt"
    path.write_text("mine")
    yield path
    path.unlink()


def test_check_of_all_shards_reports_each(one: RunningCluster, foreign: Path) -> None:
    reports = check(one, dry_run=True)
    assert len(reports) == 2
    examples = [example for report in reports.values() for example in report["examples"]]
    assert {"finding": "foreign", "what": "notes.txt"} in examples


def test_check_of_one_shard_reports_it(one: RunningCluster) -> None:
    [shard] = check(one, shard=1, dry_run=True)
    assert shard == 1


def test_missing_file_is_found_and_its_row_doubted(one: RunningCluster) -> None:
    client = one.admin
    with one.settings(presence_interval_seconds=3600):
        time.sleep(0.1)
        path = f"/artifactory/generic-local/{uuid4()}"
        assert client.put(path, b"soon gone " + uuid4().bytes).status == 201
        sha256 = client.head(path).headers["X-Checksum-Sha256"]
        files = [file for file in one.files() if file.name.startswith(sha256)]
        files[0].unlink()
        dry = check(one, dry_run=True)
        assert check(one) == dry
        assert sum(report["findings"].get("missing", {}).get("found", 0) for report in dry.values()) == 1
        after = check(one)
        assert not any("missing" in report["findings"] for report in after.values())
        assert client.get(path).status == 200


def test_stray_is_set_aside_once_it_is_old_enough(one: RunningCluster) -> None:
    name = f"{bytes(32).hex()}.{mint_generation()}"
    file = one.first.disks[0] / "blobs" / fan_out_of(name) / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"whose is it?")
    check(one)
    assert file.exists()
    one.sql("UPDATE sightings SET first_seen_at = first_seen_at - interval '30 hours'")
    reports = check(one)
    assert sum(report["findings"].get("stray", {}).get("acted", 0) for report in reports.values()) == 1
    wait_until(lambda: not file.exists())
    assert (one.first.disks[0] / "quarantine" / name).read_bytes() == b"whose is it?"
    wait_until(lambda: one.sql("SELECT 1 FROM quarantine WHERE moved_at IS NOT NULL") != [])
    assert not any("stray" in report["findings"] for report in check(one).values())


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"dry_run": True, "repair": True}, 400),
        ({"rebuild": True, "repair": True}, 400),
        ({"rebuild": True}, 400),
        ({"shard": "x"}, 400),
        ({"shard": 0}, 400),
        ({"strange": True}, 400),
        ({"shard": 999}, 404),
    ],
)
def test_order_that_makes_no_sense_is_refused(one: RunningCluster, order: dict[str, Any], status: int) -> None:
    assert errors_of(one.admin.post_json(BASE, order))[0] == status


@pytest.mark.parametrize("request_", ["x", "01890000-0000-7000-8000-0000000000cc"])
def test_unknown_check_is_not_found(one: RunningCluster, request_: str) -> None:
    assert errors_of(one.admin.get(f"{BASE}/{request_}"))[0] == 404


def test_only_administrators_check(one: RunningCluster) -> None:
    assert one.with_token("read").post_json(BASE, {}).status == 403
    assert one.with_token("read").get(f"{BASE}/{uuid4()}").status == 403


def run(one: RunningCluster, *arguments: str) -> tuple[int, str]:
    environment = {"HOLDFAST_USER": "admin", "HOLDFAST_PASSWORD": PASSWORD}
    url = f"http://127.0.0.1:{one.first.port}"
    result = CliRunner().invoke(main, ["fsck", "--url", url, *arguments], env=environment)
    return result.exit_code, result.stdout


def test_command_shows_what_was_found(one: RunningCluster, foreign: Path) -> None:
    code, text = run(one, "--dry-run")
    assert code == 0, text
    assert "foreign files: 1 found, 1 left alone" in text and "notes.txt" in text
    assert "run the same without --dry-run" in text


def test_command_prints_json(one: RunningCluster) -> None:
    code, text = run(one, "--shard", "1", "--json")
    document = json.loads(text)
    assert code == 0
    assert [row["shard"] for row in document["checks"]] == [1] and document["unreached"] == []


def test_command_refuses_a_dry_run_that_repairs(one: RunningCluster) -> None:
    assert run(one, "--dry-run", "--repair")[0] == 2
