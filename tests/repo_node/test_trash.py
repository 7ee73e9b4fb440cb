"""The trash and gc as clients and operators use them, over REST on a running node."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from repo_node.cli import main
from tests.postgres import TestServer
from tests.repo_node.nodes import PASSWORD, RunningCluster, configure, prepare, run_nodes, wait_until

REPOSITORY = "/artifactory/generic-local"
TRASH = "/artifactory/api/trash"
LISTING = "/artifactory/api/holdfast/trash"
GC = "/artifactory/api/holdfast/gc"


@pytest.fixture(scope="module")
def cluster(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two nodes of their own: these tests let go of whatever is in the trash."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        directory = tmp_path_factory.mktemp("trash")
        with run_nodes([configure(dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]) as running:
            yield running


def listed(cluster: RunningCluster, path: str) -> list[str]:
    answer = cluster.admin.get(f"{LISTING}?path={path}")
    assert answer.status == 200, answer
    return [item["path"] for item in answer.json()["items"]]


def test_deleted_artifact_is_listed_and_restored(cluster: RunningCluster) -> None:
    admin = cluster.admin
    assert admin.put(f"{REPOSITORY}/one/a.txt", b"precious").status == 201
    assert admin.request("DELETE", f"{REPOSITORY}/one/a.txt").status == 204
    assert admin.get(f"{REPOSITORY}/one/a.txt").status == 404
    assert listed(cluster, "generic-local/one/a.txt") == ["one/a.txt"]
    assert listed(cluster, "generic-local/one") == ["one/a.txt"]
    answer = admin.request("POST", f"{TRASH}/restore/generic-local/one/a.txt")
    assert answer.status == 202, answer
    assert admin.get(f"{REPOSITORY}/one/a.txt").body == b"precious"
    assert listed(cluster, "generic-local/one") == []


def test_overwritten_artifact_is_restored_and_what_replaced_it_is_kept(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for body in (b"first", b"second"):
        admin.put(f"{REPOSITORY}/two", body)
    assert admin.request("POST", f"{TRASH}/restore/generic-local/two").status == 202
    assert admin.get(f"{REPOSITORY}/two").body == b"first"
    assert admin.request("POST", f"{TRASH}/restore/generic-local/two?replace=1").status == 202
    assert admin.get(f"{REPOSITORY}/two").body == b"second"


def test_repeated_restore_changes_nothing_whatever_older_versions_there_are(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for body in (b"older", b"old", b"new"):
        admin.put(f"{REPOSITORY}/again/a", body)
    admin.request("DELETE", f"{REPOSITORY}/again/a")
    restore = f"{TRASH}/restore/generic-local/again/a"
    assert admin.request("POST", restore).status == 202
    for _ in range(2):
        answer = admin.request("POST", restore)
        assert answer.status == 200 and b"already restored" in answer.body
        assert admin.get(f"{REPOSITORY}/again/a").body == b"new"
    admin.put(f"{REPOSITORY}/again/a", b"newest")
    admin.request("POST", restore)
    assert admin.get(f"{REPOSITORY}/again/a").body == b"new", "an upload came after the restore: this is another one"
    admin.request("POST", restore)
    assert admin.get(f"{REPOSITORY}/again/a").body == b"new", "nor does what it replaced come back"


def test_repeated_restore_of_a_folder_puts_no_older_version_over_the_right_one(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for body in (b"old", b"new"):
        admin.put(f"{REPOSITORY}/again-2/a", body)
        admin.request("DELETE", f"{REPOSITORY}/again-2")
    restore = f"{TRASH}/restore/generic-local/again-2?replace=1"
    assert admin.request("POST", restore).status == 202
    answer = admin.request("POST", restore)
    assert answer.status == 200 and b"1 artifact already restored" in answer.body
    assert admin.get(f"{REPOSITORY}/again-2/a").body == b"new"


def test_folder_is_restored_elsewhere_and_what_is_there_stays(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for name in ("a", "b", "sub/c"):
        admin.put(f"{REPOSITORY}/three/{name}", name.encode())
    admin.request("DELETE", f"{REPOSITORY}/three")
    admin.put(f"{REPOSITORY}/back/b", b"mine")
    answer = admin.request("POST", f"{TRASH}/restore/generic-local/three?to=generic-local/back")
    assert answer.status == 202 and b"Restored 2" in answer.body and b"1 artifact not restored" in answer.body
    assert [admin.get(f"{REPOSITORY}/back/{name}").body for name in ("a", "b", "sub/c")] == [b"a", b"mine", b"sub/c"]
    assert listed(cluster, "generic-local/three") == ["three/b"]
    assert admin.request("DELETE", f"{TRASH}/clean/generic-local/three").body == b"1 artifact left the trash.\n"
    assert listed(cluster, "generic-local/three") == []


def test_folder_gets_back_what_was_deleted_last_and_nothing_that_was_overwritten(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for body in (b"old", b"overwritten", b"deleted with the folder"):
        admin.put(f"{REPOSITORY}/four/twice", body)
    admin.put(f"{REPOSITORY}/four/once", b"deleted before")
    admin.request("DELETE", f"{REPOSITORY}/four/once")
    admin.request("DELETE", f"{REPOSITORY}/four")
    restore = f"{TRASH}/restore/generic-local/four"
    assert b"Restored 2" in admin.request("POST", f"{restore}?to=generic-local/four-2").body
    assert admin.get(f"{REPOSITORY}/four-2/twice").body == b"deleted with the folder"
    assert admin.get(f"{REPOSITORY}/four-2/once").body == b"deleted before"
    again = admin.request("POST", restore)
    assert again.status == 404 and b"by its own path" in again.body, "the overwritten ones stay"
    assert admin.request("POST", f"{restore}/twice").status == 202
    assert admin.get(f"{REPOSITORY}/four/twice").body == b"overwritten"


def test_folder_replaces_what_is_in_its_place_only_when_asked(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for name in ("a", "b", "c/d"):
        admin.put(f"{REPOSITORY}/five/{name}", b"before " + name.encode())
    admin.request("DELETE", f"{REPOSITORY}/five")
    admin.put(f"{REPOSITORY}/five/a", b"after")
    admin.put(f"{REPOSITORY}/five/c", b"an artifact where a folder was")
    restore = f"{TRASH}/restore/generic-local/five"
    answer = admin.request("POST", restore)
    assert answer.status == 202 and b"Restored 1 artifact from" in answer.body and b"2 artifacts not" in answer.body
    assert admin.get(f"{REPOSITORY}/five/a").body == b"after"
    assert b"Restored 1 artifact from" in admin.request("POST", f"{restore}?replace=1").body
    assert admin.get(f"{REPOSITORY}/five/a").body == b"before a"
    assert admin.get(f"{REPOSITORY}/five/c").body == b"an artifact where a folder was"
    assert admin.request("POST", f"{TRASH}/restore/generic-local/five/a?replace=1").status == 202
    assert admin.get(f"{REPOSITORY}/five/a").body == b"after", "what was replaced is in the trash"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("restore/generic-local/a?replace=maybe", 400),
        ("restore/generic-local/never-there", 404),
        ("restore/no-such-repository/a", 404),
        ("restore/generic-local/a?to=no-such-repository/a", 404),
        ("restore/generic-local/a?to=generic-local/../a", 400),
        ("restore/generic-local/a?to=", 400),
    ],
)
def test_restore_that_cannot_be_done_says_so(cluster: RunningCluster, path: str, status: int) -> None:
    assert cluster.admin.request("POST", f"{TRASH}/{path}").status == status


def test_trash_needs_an_administrator(cluster: RunningCluster) -> None:
    reader = cluster.with_token("read", "write", "delete")
    for method, path in (
        ("GET", LISTING),
        ("POST", f"{TRASH}/empty"),
        ("POST", f"{TRASH}/restore/generic-local/a"),
        ("DELETE", f"{TRASH}/clean/generic-local/a"),
        ("GET", GC),
        ("GET", f"{GC}/candidates"),
        ("POST", f"{GC}/release"),
        ("POST", f"{GC}/hold"),
        ("POST", "/artifactory/api/system/storage/gc"),
    ):
        assert reader.request(method, path).status == 403, path


def test_repository_can_do_without_trash(cluster: RunningCluster) -> None:
    admin = cluster.admin
    assert admin.put_json("/artifactory/api/repositories/no-trash", {"trash": False}).status == 200
    assert admin.get("/artifactory/api/repositories/no-trash").json()["trash"] is False
    admin.put("/artifactory/no-trash/a", b"x")
    admin.request("DELETE", "/artifactory/no-trash/a")
    assert listed(cluster, "no-trash") == []
    assert admin.post_json("/artifactory/api/repositories/no-trash", {"trash": True}).status == 200
    assert admin.post_json("/artifactory/api/repositories/no-trash", {"rclass": "x"}).status == 400
    assert admin.post_json("/artifactory/api/repositories/never-made", {"trash": True}).status == 404
    admin.put("/artifactory/no-trash/a", b"x")
    admin.request("DELETE", "/artifactory/no-trash/a")
    assert listed(cluster, "no-trash") == ["a"]


def test_emptied_content_is_collected_and_its_files_removed(cluster: RunningCluster) -> None:
    """With the grace put off by moving the clock of the candidates, the only way outside of a test's own process."""
    admin = cluster.admin
    admin.put(f"{REPOSITORY}/gone", b"unique content that goes" * 100)
    admin.put(f"{REPOSITORY}/kept", b"unique content that stays" * 100)
    sha256 = admin.get("/artifactory/api/storage/generic-local/gone").json()["checksums"]["sha256"]
    kept = admin.get("/artifactory/api/storage/generic-local/kept").json()["checksums"]["sha256"]
    admin.request("DELETE", f"{REPOSITORY}/gone")
    assert admin.request("POST", f"{TRASH}/empty").status == 200
    page = admin.get(f"{GC}/candidates").json()
    assert [(one["goes"], one["because"]) for one in page["candidates"] if one["sha256"] == sha256] == [
        (False, "its grace is not over")
    ]
    cluster.sql("UPDATE gc_candidates SET since = now() - interval '2 days'")
    with cluster.settings(removal_delay_seconds=0, removal_idle_seconds=0.1):
        assert any(one["goes"] for one in admin.get(f"{GC}/candidates").json()["candidates"])
        wait_until(lambda: admin.get(GC).json()["primary"])
        answer = admin.request("POST", "/artifactory/api/system/storage/gc")
        assert (answer.status, answer.body) == (200, b"Garbage collection was started.\n")
        wait_until(lambda: not any(sha256 in path.name for path in cluster.files()))
    assert sum(kept in path.name for path in cluster.files()) == 2
    assert admin.get(f"{REPOSITORY}/kept").status == 200
    wait_until(lambda: admin.get(GC).json()["removals"] == {"files": 0, "bytes": 0})
    assert sum(node.metric("holdfast_reclaimed_bytes_total", reason="gc") for node in cluster.nodes) >= 4_800


def test_hold_is_told_and_released(cluster: RunningCluster) -> None:
    admin = cluster.admin
    assert admin.post_json(f"{GC}/hold", {"detail": "restoring"}).json() == {"placed": True}
    assert admin.post_json(f"{GC}/hold", {}).json() == {"placed": False}
    [hold] = admin.get(GC).json()["holds"]
    assert hold["reason"] == "operator" and "restoring" in hold["detail"]
    wait_until(lambda: admin.get("/artifactory/api/holdfast/status").json()["deletion_holds"] == ["operator"])
    assert "Deletions are held (operator)" in holdfast(cluster, "status")
    assert b"is held" in admin.request("POST", "/artifactory/api/system/storage/gc").body
    wait_until(lambda: b'holdfast_deletions_held{reason="operator"} 1' in admin.get("/metrics").body)
    assert admin.post_json(f"{GC}/release", {}).json() == {"released": ["operator"]}
    assert admin.get(GC).json()["holds"] == []
    assert admin.post_json(f"{GC}/hold", {"detail": 7}).status == 400


def test_exactly_one_node_is_the_primary(cluster: RunningCluster) -> None:
    wait_until(lambda: cluster.admin.get(GC).json()["primary"])
    primary = cluster.admin.get(GC).json()["primary"]
    held = {}
    for node in cluster.nodes:
        node.admin.get("/metrics")
        held[node.config.node.id] = node.metric("holdfast_primary_held")
    assert held[primary["node"]] == 1 and sum(held.values()) == 1


# ---------------------------------------------------------------- the command line


def holdfast(cluster: RunningCluster, *arguments: str, status: int = 0) -> str:
    """Run a command against the cluster and return what it printed."""
    environment = {
        "HOLDFAST_URL": f"http://127.0.0.1:{cluster.first.port}",
        "HOLDFAST_USER": "admin",
        "HOLDFAST_PASSWORD": PASSWORD,
        "COLUMNS": "120",
    }
    result = CliRunner().invoke(main, list(arguments), env=environment)
    assert result.exit_code == status, result.output
    return result.output


def test_commands_list_restore_and_empty_the_trash(cluster: RunningCluster) -> None:
    admin = cluster.admin
    for name in ("a", "b", "c"):
        admin.put(f"{REPOSITORY}/cli/{name}", b"cli " + name.encode())
    admin.delete(f"{REPOSITORY}/cli")
    shown = holdfast(cluster, "trash", "list", "generic-local/cli")
    assert "generic-local/cli/a" in shown and "deleted" in shown and "admin" in shown
    told = json.loads(holdfast(cluster, "trash", "list", "generic-local/cli", "--json", "--limit", "2"))
    assert [item["path"] for item in told["items"]] == ["cli/a", "cli/b"] and told["more"]
    assert "there are more" in holdfast(cluster, "trash", "list", "generic-local/cli", "--limit", "2")
    assert "there are more" not in holdfast(cluster, "trash", "list", "generic-local/cli", "--limit", "3")
    assert "Restored 1" in holdfast(cluster, "trash", "restore", "generic-local/cli/a")
    assert admin.get(f"{REPOSITORY}/cli/a").body == b"cli a"
    assert "Restored 2" in holdfast(cluster, "trash", "restore", "generic-local/cli", "--to", "generic-local/cli-2")
    assert "holds nothing" in holdfast(cluster, "trash", "restore", "generic-local/cli", status=1)
    admin.delete(f"{REPOSITORY}/cli-2")
    assert "Aborted" in holdfast(cluster, "trash", "empty", "generic-local/cli-2", status=1)
    assert holdfast(cluster, "trash", "empty", "generic-local/cli-2", "--yes") == "2 artifacts left the trash.\n"
    holdfast(cluster, "trash", "empty", "--yes")
    assert holdfast(cluster, "trash", "list") == "The trash is empty there.\n"


def test_commands_run_hold_and_release_gc(cluster: RunningCluster) -> None:
    admin = cluster.admin
    holdfast(cluster, "gc")
    admin.put(f"{REPOSITORY}/cli-gone", b"content that the command removes")
    sha256 = admin.get("/artifactory/api/storage/generic-local/cli-gone").json()["checksums"]["sha256"]
    admin.delete(f"{REPOSITORY}/cli-gone")
    holdfast(cluster, "trash", "empty", "--yes")
    cluster.sql("UPDATE gc_candidates SET since = now() - interval '2 days'")
    told = json.loads(holdfast(cluster, "gc", "--dry-run", "--json"))
    going = [one["sha256"] for one in told["candidates"] if one["goes"]]
    assert sha256 in going
    shown = holdfast(cluster, "gc", "--dry-run")
    assert sha256[:16] in shown and f"A run now would remove {len(going)} blob" in shown
    assert "Deletions are held" in holdfast(cluster, "gc", "hold", "the test wants it")
    assert "the test wants it" in holdfast(cluster, "gc", "status")
    assert "deletions are held: the test wants it" in holdfast(cluster, "gc", status=1)
    assert cluster.sql("SELECT 1 FROM blobs WHERE sha256 = $1", bytes.fromhex(sha256))
    assert holdfast(cluster, "gc", "release") == "Released: operator.\n"
    assert holdfast(cluster, "gc", "release") == "Nothing held deletions.\n"
    assert "Garbage collection has run" in holdfast(cluster, "gc")
    assert not cluster.sql("SELECT 1 FROM blobs WHERE sha256 = $1", bytes.fromhex(sha256))
    assert "Primary node: node-" in holdfast(cluster, "gc", "status")
