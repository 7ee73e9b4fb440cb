"""Copy and move over REST: where things go, what stays, what a repeat and an interruption do."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from repo_node.db import transfers as rows
from repo_node.db.errors import CatalogueUnavailable
from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of

ROOT = "/artifactory/generic-local"
TREE = ("a", "sub/b", "sub/deep/c", "sub-beside/d")


@pytest.fixture
def top(one: RunningCluster) -> str:
    """The path of a folder with a tree in it, in generic-local."""
    name = secrets.token_hex(6)
    for path in TREE:
        assert one.admin.put(f"{ROOT}/{name}/src/{path};of={path.replace('/', '-')}", path.encode()).status == 201
    one.admin.put(f"{ROOT}/{name}/src/empty/")
    return name


def transfer(
    one: RunningCluster, verb: str, source: str, to: str, more: str = "", repository: str = "generic-local"
) -> Answer:
    return one.admin.request("POST", f"/artifactory/api/{verb}/generic-local/{source}?to=/{repository}/{to}{more}")


def tree(one: RunningCluster, path: str, repository: str = "generic-local") -> dict[str, tuple[str, Any]]:
    """Return what lies in a folder: relative path to sha256 and properties; folders end in a slash."""
    found = one.sql(
        """
        SELECT concat_ws('/', nullif(a.folder, ''), a.name) AS path, encode(b.sha256, 'hex') AS sha256, a.properties
          FROM artifacts a JOIN repositories r ON r.id = a.repo_id LEFT JOIN blobs b ON b.id = a.blob_id WHERE r.key = $1
        """,
        repository,
    )
    start = f"{path}/" if path else ""
    return {
        row["path"].removeprefix(start) + ("" if row["sha256"] else "/"): (row["sha256"], json.loads(row["properties"]))
        for row in found
        if row["path"].startswith(start)
    }


def unfinished(one: RunningCluster) -> int:
    found = one.sql("SELECT count(*) AS n FROM transfers WHERE started_at > now() - interval '12 hours'")
    return int(found[0]["n"])


def forget(one: RunningCluster) -> None:
    """Let the time pass in which the same request means the same."""
    one.sql("UPDATE transfers SET started_at = started_at - interval '2 minutes'")


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_a_folder_goes_with_all_in_it(one: RunningCluster, top: str, verb: str) -> None:
    one.admin.put(f"/artifactory/api/storage/generic-local/{top}/src/sub?properties=k=v&recursive=0")
    before = tree(one, f"{top}/src")
    assert before["sub/"][1] == {"k": ["v"]} and before["a"][1] == {"of": ["a"]} and "empty/" in before
    times = one.admin.get(f"/artifactory/api/storage/generic-local/{top}/src/a").json()
    answer = transfer(one, verb, f"{top}/src", f"{top}/new/dst")
    assert answer.status == 200, answer
    [message] = answer.json()["messages"]
    assert message["level"] == "INFO" and "4 artifacts and 5 folders" in message["message"]
    assert tree(one, f"{top}/new/dst") == before
    assert tree(one, f"{top}/src") == ({} if verb == "move" else before)
    assert one.admin.get(f"/artifactory/api/storage/generic-local/{top}/src").status == (404 if verb == "move" else 200)
    moved = one.admin.get(f"/artifactory/api/storage/generic-local/{top}/new/dst/a").json()
    assert all(moved[name] == times[name] for name in ("created", "createdBy", "lastModified", "checksums"))
    for path in TREE:
        assert one.admin.get(f"{ROOT}/{top}/new/dst/{path}").body == path.encode()


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_where_an_artifact_goes(one: RunningCluster, top: str, verb: str) -> None:
    def go(to: str) -> None:
        one.admin.put(f"{ROOT}/{top}/f", b"f")
        assert transfer(one, verb, f"{top}/f", to).status == 200

    go(f"{top}/renamed")
    go(f"{top}/src")
    go(f"{top}/made/")
    go(f"{top}/over")
    found = tree(one, top)
    assert {"renamed", "src/f", "made/", "made/f", "over"} <= set(found)
    assert ("f" in found) == (verb == "copy")


def test_a_folder_goes_into_one_that_exists(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/dst/")
    assert transfer(one, "move", f"{top}/src", f"{top}/dst").status == 200
    assert {f"src/{path}" for path in TREE} <= set(tree(one, f"{top}/dst"))
    assert transfer(one, "move", f"{top}/dst/src", f"{top}/renamed/").status == 200
    assert set(TREE) <= set(tree(one, f"{top}/renamed"))


def test_between_repositories_and_from_and_to_their_roots(one: RunningCluster, top: str) -> None:
    other, third = f"r-{top}-2", f"r-{top}-3"
    for key in (other, third):
        one.admin.put_json(f"/artifactory/api/repositories/{key}", {})
    assert one.admin.request("POST", f"/artifactory/api/copy/generic-local/{top}/src?to=/{other}").status == 200
    assert set(TREE) <= {path.removeprefix("src/") for path in tree(one, "", other)}
    assert one.admin.request("POST", f"/artifactory/api/move/{other}?to=/{third}").status == 200
    assert set(TREE) <= {path.removeprefix("src/") for path in tree(one, "", third)}
    assert tree(one, "", other) == {}


def test_what_is_in_the_place_goes_to_the_trash(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/there", b"old")
    assert transfer(one, "copy", f"{top}/src/a", f"{top}/there").status == 200
    assert one.admin.get(f"{ROOT}/{top}/there").body == b"a"
    restore = f"/artifactory/api/trash/restore/generic-local/{top}/there"
    assert one.admin.request("POST", restore).status == 202, "the copy is no restore"
    assert one.admin.get(f"{ROOT}/{top}/there").body == b"old"


def test_a_conflict_hinders_nothing_else(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/dst/src/sub", b"a file where a folder should be")
    before = tree(one, f"{top}/src")
    answer = transfer(one, "move", f"{top}/src", f"{top}/dst")
    assert answer.status == 409
    told = [message["message"] for message in answer.json()["messages"]]
    assert [message["level"] for message in answer.json()["messages"]] == ["ERROR"] * len(told)
    assert any(f"generic-local:{top}/dst/src/sub/b: a folder is" in text for text in told)
    left, gone = tree(one, f"{top}/src"), tree(one, f"{top}/dst/src")
    assert set(left) == {"sub/", "sub/b", "sub/deep/", "sub/deep/c"}
    assert {"a", "sub-beside/d", "empty/"} <= set(gone)
    assert left | {path: value for path, value in gone.items() if path in before} == before


def test_fail_fast_stops_at_the_first(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/dst/src/a/", b"")
    answer = transfer(one, "copy", f"{top}/src", f"{top}/dst", "&failFast=1")
    assert answer.status == 409 and len(answer.json()["messages"]) == 2
    assert set(tree(one, f"{top}/dst/src")) == {"a/"}


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_a_dry_run_tells_the_same_and_changes_nothing(one: RunningCluster, top: str, verb: str) -> None:
    one.admin.put(f"{ROOT}/{top}/dst/src/sub", b"a file where a folder should be")
    before, events = tree(one, top), one.sql("SELECT count(*) FROM events")
    dry = transfer(one, verb, f"{top}/src", f"{top}/dst", "&dry=1&suppressLayouts=0")
    assert (tree(one, top), one.sql("SELECT count(*) FROM events")) == (before, events)
    real = transfer(one, verb, f"{top}/src", f"{top}/dst")
    assert dry.status == real.status == 409
    assert [m["message"].removeprefix("Dry Run for ") for m in dry.json()["messages"]] == [
        m["message"] for m in real.json()["messages"]
    ]
    assert unfinished(one) == 0


def test_what_cannot_be_is_refused(one: RunningCluster, top: str) -> None:
    for source, to in ((top, top), (f"{top}/src", f"{top}/src/inside"), (f"{top}/src/a", f"{top}/src/a")):
        assert errors_of(transfer(one, "move", source, to))[0] == 400
    assert errors_of(transfer(one, "copy", f"{top}/none", f"{top}/x"))[0] == 404
    assert errors_of(transfer(one, "copy", f"{top}/src", "x", repository="none"))[0] == 404
    assert errors_of(transfer(one, "copy", f"{top}/src", "a/../b"))[0] == 400
    assert errors_of(one.admin.request("POST", f"/artifactory/api/copy/generic-local/{top}/src"))[0] == 400
    assert (
        errors_of(one.admin.request("POST", f"/artifactory/api/move/generic-local?to=/generic-local/{top}"))[0] == 400
    )
    assert unfinished(one) == 0


def test_a_path_that_becomes_too_long_stays(one: RunningCluster, top: str) -> None:
    long = "/".join(["x" * 200] * 4)
    one.admin.put(f"{ROOT}/{top}/long/{long}", b"long")
    answer = transfer(one, "move", f"{top}/long", f"{top}/{'y' * 250}")
    assert answer.status == 409 and "too long" in answer.json()["messages"][0]["message"]
    assert one.admin.get(f"{ROOT}/{top}/long/{long}").body == b"long"


def test_scopes_of_both_ends_are_asked(one: RunningCluster, top: str) -> None:
    copy, move = (
        f"/artifactory/api/{verb}/generic-local/{top}/src?to=/generic-local/{top}/t" for verb in ("copy", "move")
    )
    assert one.with_token("write").request("POST", copy).status == 403
    assert one.with_token("read", "delete").request("POST", copy).status == 403
    assert one.with_token("read", "write").request("POST", move).status == 403
    assert tree(one, f"{top}/t") == {}
    assert one.with_token("read", "write").request("POST", copy).status == 200
    assert one.with_token("read", "write", "delete").request("POST", move).status == 200


@pytest.mark.parametrize("verb", ["copy", "move"])
@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_an_interrupted_one_is_whole_at_any_moment_and_goes_on_when_repeated(
    one: RunningCluster, top: str, verb: str, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo_node.transfers.PAGE", 2)
    before, page, calls = tree(one, f"{top}/src"), rows.page, 0

    async def fail(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise CatalogueUnavailable("the node died here")
        return await page(*args, **options)

    monkeypatch.setattr(rows, "page", fail)
    assert transfer(one, verb, f"{top}/src", f"{top}/dst").status == 503
    here, there = tree(one, f"{top}/src"), tree(one, f"{top}/dst")
    assert here | there == before, "each is at one of the places at least"
    assert transfer(one, verb, f"{top}/src", f"{top}/dst").status == 200
    assert tree(one, f"{top}/dst") == before, "not into the folder that the first attempt made"
    assert tree(one, f"{top}/src") == ({} if verb == "move" else before)
    assert unfinished(one) == 0


def test_a_copy_over_a_copy_changes_nothing(one: RunningCluster, top: str) -> None:
    transfer(one, "copy", f"{top}/src/a", f"{top}/copy")
    before = one.admin.get(f"/artifactory/api/storage/generic-local/{top}/copy").json()
    assert transfer(one, "copy", f"{top}/src/a", f"{top}/copy").status == 200
    assert one.admin.get(f"/artifactory/api/storage/generic-local/{top}/copy").json() == before


def test_moves_that_cross_lose_nothing(one: RunningCluster, top: str) -> None:
    """Several clients move the same tree to and fro while others upload into it."""

    def move(number: int) -> None:
        here, there = (f"{top}/src", f"{top}/dst")[:: 1 if number % 2 else -1]
        for path in TREE:
            assert transfer(one, "move", f"{here}/{path}", f"{there}/{path}").status in (200, 404)

    def upload(number: int) -> None:
        assert one.admin.put(f"{ROOT}/{top}/src/sub/new-{number}", b"new").status == 201

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: job[0](job[1]), [(move, n) for n in range(12)] + [(upload, n) for n in range(12)]))
    found = {path.removeprefix("src/").removeprefix("dst/") for path in tree(one, top)}
    assert set(TREE) | {f"sub/new-{n}" for n in range(12)} <= found
    for path in TREE:
        bodies = [one.admin.get(f"{ROOT}/{top}/{side}/{path}") for side in ("src", "dst")]
        assert [answer.body for answer in bodies if answer.status == 200] == [path.encode()]


def test_a_move_leaves_one_event_for_each_step(one: RunningCluster, top: str) -> None:
    transfer(one, "move", f"{top}/src", f"{top}/dst")
    [row] = one.sql("SELECT path, principal, detail FROM events WHERE kind = 'move' AND path = $1", f"{top}/dst")
    assert json.loads(row["detail"]) == {"from": f"generic-local/{top}/src", "items": 9}


def test_a_copy_to_where_more_copies_are_wanted_asks_for_them(one: RunningCluster, top: str) -> None:
    one.admin.put_json(f"/artifactory/api/repositories/r-{top}", {"redundancy": 3})
    assert one.admin.request("POST", f"/artifactory/api/copy/generic-local/{top}/src/a?to=/r-{top}/a").status == 200
    [blob] = one.sql(
        "SELECT b.redundancy FROM blobs b JOIN artifacts a ON a.blob_id = b.id WHERE a.folder = $1 AND a.name = 'a'",
        f"{top}/src",
    )
    assert blob["redundancy"] == 3


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_a_request_whose_answer_was_lost_does_nothing_more_when_it_is_repeated(
    one: RunningCluster, top: str, verb: str
) -> None:
    assert transfer(one, verb, f"{top}/src", f"{top}/dst").status == 200
    there = tree(one, f"{top}/dst")
    again = transfer(one, verb, f"{top}/src", f"{top}/dst")
    assert again.status == 200, again
    assert f"generic-local:{top}/dst " in again.json()["messages"][0]["message"]
    assert tree(one, f"{top}/dst") == there
    forget(one)
    later = transfer(one, verb, f"{top}/src", f"{top}/dst")
    if verb == "move":
        assert errors_of(later)[0] == 404
    else:
        assert later.status == 200
        assert {f"src/{path}" for path in TREE} <= set(tree(one, f"{top}/dst")), "a folder that is there takes it"


def test_a_failure_is_told_where_clients_look_for_it(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/file", b"a file")
    answer = transfer(one, "copy", f"{top}/src/a", f"{top}/file/under")
    assert answer.status == 409
    [error] = answer.json()["errors"]
    assert error["status"] == 409 and f"{top}/file/under" in error["message"]


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_matrix_parameters_are_refused(one: RunningCluster, top: str, verb: str) -> None:
    assert errors_of(transfer(one, verb, f"{top}/src;of=a", f"{top}/dst"))[0] == 400
    assert tree(one, f"{top}/dst") == {}
