"""PUT without bytes: what is linked, what is asked for anew, and that nobody gets at what they may not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import RunningCluster, configure, errors_of, new_path, random_bytes, run_nodes, wait_until
from tests.repo_node.test_failures import copies

NAMES = ("sha256", "sha1", "md5")
LARGE_BYTES = (2 << 20) + 77


def digest(name: str, data: bytes) -> str:
    return hashlib.new(name, data).hexdigest()


def deploy_known(client: Client, path: str, data: bytes, names: tuple[str, ...] = ("sha256",), **more: str) -> Answer:
    """Deploy ``data`` to ``path`` by these of its checksums."""
    headers = {f"X-Checksum-{name.capitalize()}": digest(name, data) for name in names}
    return client.request("PUT", path, headers={"X-Checksum-Deploy": "true", **headers, **more})


def stored(client: Client, size: int = 1000) -> bytes:
    """Upload new content somewhere and return it."""
    data = random_bytes(size)
    assert client.put(new_path(), data).status == 201
    return data


def test_known_content_is_deployed_without_its_bytes(one: RunningCluster) -> None:
    data = stored(one.admin)
    files, path = set(one.files()), new_path(".txt")
    answer = deploy_known(one.admin, f"{path};a=1;a=2", data)
    document = answer.json()
    assert answer.status == 201
    assert set(one.files()) == files
    checksums = {name: digest(name, data) for name in NAMES}
    base = f"http://127.0.0.1:{one.first.port}/artifactory"
    within = path.removeprefix("/artifactory/generic-local")
    assert document.pop("created").endswith("Z")
    assert document == {
        "repo": "generic-local",
        "path": within,
        "createdBy": "admin",
        "downloadUri": f"{base}/generic-local{within}",
        "mimeType": "text/plain",
        "size": str(len(data)),
        "checksums": checksums,
        "originalChecksums": {"sha256": checksums["sha256"]},
        "uri": f"{base}/api/storage/generic-local{within}",
    }
    assert answer.headers["Location"] == document["downloadUri"]
    assert one.admin.get(f"{path};a=2").body == data
    [event] = one.sql(
        "SELECT kind, adopted, principal, sha256 FROM events WHERE repository = 'generic-local' AND path = $1",
        within[1:],
    )
    assert tuple(event) == ("deploy", False, "admin", hashlib.sha256(data).digest())


@pytest.mark.parametrize("size", [0, 1, 1 << 20, LARGE_BYTES])
@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES, ("sha1", "md5")], ids="+".join)
def test_any_checksum_names_the_content(three: RunningCluster, names: tuple[str, ...], size: int) -> None:
    data, path = stored(three.admin, size), new_path()
    answer = deploy_known(three.nodes[1].admin, path, data, names)
    assert (answer.status, answer.json()["size"]) == (201, str(size))
    assert [node.admin.get(path).body for node in three.nodes] == [data] * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_checksum_without_its_kind_is_told_by_its_length(one: RunningCluster, name: str) -> None:
    data, path = stored(one.admin), new_path()
    answer = one.admin.put(path, X_Checksum_Deploy="true", X_Checksum=digest(name, data))
    assert answer.status == 201
    assert one.admin.get(path).body == data


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES], ids="+".join)
def test_unknown_content_is_404_and_leaves_nothing(one: RunningCluster, names: tuple[str, ...]) -> None:
    path = new_path()
    status, message = errors_of(deploy_known(one.admin, path, random_bytes(50), names))
    assert (status, "File not found" in message) == (404, True)
    assert one.admin.get(path).status == 404


def test_checksums_of_two_contents_are_409(one: RunningCluster) -> None:
    data, path = stored(one.admin), new_path()
    answer = deploy_known(one.admin, path, data, **{"X-Checksum-Sha1": digest("sha1", b"other")})
    assert answer.status == 409
    assert one.admin.get(path).status == 404


def test_an_unknown_sha256_is_404_whatever_else_is_known(one: RunningCluster) -> None:
    data = stored(one.admin)
    answer = deploy_known(one.admin, new_path(), data, ("md5",), **{"X-Checksum-Sha256": digest("sha256", b"other")})
    assert answer.status == 404


def test_a_checksum_deploy_without_a_checksum_is_400(one: RunningCluster) -> None:
    assert one.admin.put(new_path(), X_Checksum_Deploy="true").status == 400


def test_false_is_an_ordinary_upload(one: RunningCluster) -> None:
    data, path = stored(one.admin), new_path()
    assert deploy_known(one.admin, path, data, **{"X-Checksum-Deploy": "false"}).status == 409
    assert one.admin.put(path, data, X_Checksum_Deploy="false").status == 201


@pytest.mark.parametrize("size", [5, 3 << 20])
def test_a_body_is_ignored(one: RunningCluster, size: int) -> None:
    data, path = stored(one.admin), new_path()
    headers = {"X-Checksum-Deploy": "true", "X-Checksum-Sha256": digest("sha256", data), "Expect": "100-continue"}
    for sent in ({**headers}, {name: value for name, value in headers.items() if name != "Expect"}):
        assert one.admin.request("PUT", path, random_bytes(size), sent).status == 201
        assert one.admin.get(path).body == data


# ---------------------------------------------------------------------- who may


def test_who_may_not_read_cannot_tell_known_content_from_unknown(one: RunningCluster) -> None:
    data, writer = stored(one.admin), one.with_token("write")
    known, unknown = deploy_known(writer, new_path(), data), deploy_known(writer, new_path(), b"never seen")
    assert (known.status, known.body, known.head()) == (unknown.status, unknown.body, unknown.head())
    assert known.status == 404
    assert deploy_known(one.with_token("read", "write"), new_path(), data).status == 201
    assert deploy_known(one.with_token("read"), new_path(), data).status == 403
    assert deploy_known(one.first.client(), new_path(), data).status == 401


@pytest.mark.parametrize("trash", [True, False])
def test_content_that_no_artifact_has_any_more_is_not_known(one: RunningCluster, trash: bool) -> None:
    data, first, second = random_bytes(900), new_path(), new_path()
    with one.settings(trash_days=14 if trash else 0):
        for path in (first, second):
            assert one.admin.put(path, data).status == 201
        assert one.admin.delete(first).status == 204
        assert deploy_known(one.admin, new_path(), data, NAMES).status == 201
        for row in one.sql(
            "SELECT folder FROM artifacts a JOIN blobs b ON b.id = a.blob_id WHERE b.sha256 = $1",
            hashlib.sha256(data).digest(),
        ):
            assert one.admin.delete(f"/artifactory/generic-local/{row['folder']}").status == 204
        assert deploy_known(one.admin, new_path(), data, NAMES).status == 404


def test_nothing_is_deployed_to_where_it_cannot_be(one: RunningCluster) -> None:
    data, path = stored(one.admin), new_path()
    assert one.admin.put(path, b"in the way").status == 201
    assert deploy_known(one.admin, f"{path}/below", data).status == 409
    assert deploy_known(one.admin, path.rpartition("/")[0], data).status == 409
    assert deploy_known(one.admin, "/artifactory/no-such-repository/a", data).status == 404


def test_an_overwritten_artifact_goes_to_the_trash(one: RunningCluster) -> None:
    data, path, old = stored(one.admin), new_path(), random_bytes(30)
    assert one.admin.put(path, old).status == 201
    assert deploy_known(one.admin, path, data).status == 201
    assert one.admin.get(path).body == data
    [row] = one.sql(
        "SELECT t.reason FROM trash t JOIN blobs b ON b.id = t.blob_id WHERE b.sha256 = $1",
        hashlib.sha256(old).digest(),
    )
    assert row["reason"] == "overwritten"


def test_a_read_only_cluster_links_nothing(one: RunningCluster) -> None:
    data, path = stored(one.admin), new_path()
    with one.settings(read_only_reason="a test"):
        assert deploy_known(one.admin, path, data).status == 503
    assert one.admin.get(path).status == 404


# ---------------------------------------------------------------------- are its copies there?


@pytest.mark.parametrize("size", [1000, LARGE_BYTES])
def test_a_missing_copy_is_a_reason_to_ask_for_the_bytes(three: RunningCluster, size: int) -> None:
    data, path = stored(three.admin, size), new_path()
    gone = copies(three, data)[0]
    gone.unlink()
    assert deploy_known(three.admin, path, data).status == 404
    assert three.admin.put(path, data).status == 201
    # The bytes healed it: enough copies are there again.
    assert deploy_known(three.admin, new_path(), data).status == 201
    assert three.admin.get(path).body == data


def test_a_copy_of_another_size_does_not_count(three: RunningCluster) -> None:
    data = stored(three.admin)
    copies(three, data)[0].write_bytes(data[:-1])
    assert deploy_known(three.admin, new_path(), data).status == 404


def test_enough_copies_for_an_acknowledgement_are_enough(three: RunningCluster) -> None:
    data, path = stored(three.admin), new_path()
    copies(three, data)[0].unlink()
    with three.settings(write_quorum=1):
        assert deploy_known(three.admin, path, data).status == 201
    assert three.admin.get(path).body == data


def test_a_higher_redundancy_of_the_target_is_the_contents_from_then_on(three: RunningCluster) -> None:
    data = stored(three.admin)
    made = three.admin.put_json("/artifactory/api/repositories/thrice", {"rclass": "local", "redundancy": 3})
    assert made.status == 200
    assert deploy_known(three.admin, "/artifactory/thrice/a", data).status == 201
    [row] = three.sql("SELECT redundancy FROM blobs WHERE sha256 = $1", hashlib.sha256(data).digest())
    assert row["redundancy"] == 3
    wait_until(lambda: len(copies(three, data)) == 3)


@pytest.fixture
def lonely(ready_dsn: str, directory: Path) -> Iterator[RunningCluster]:
    """Two nodes with a shard each, of which a test takes one away."""
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}", shards=1) for n in (1, 2)]
    with run_nodes(configs) as cluster:
        yield cluster


def test_copies_on_a_shard_that_is_taken_out_do_not_count(lonely: RunningCluster) -> None:
    data = stored(lonely.admin)
    assert deploy_known(lonely.admin, new_path(), data).status == 201
    [row] = lonely.sql("SELECT id FROM shards WHERE node_id = 'node-2'")
    lonely.sql("UPDATE shards SET state = 'offline' WHERE id = $1", row["id"])
    assert deploy_known(lonely.admin, new_path(), data).status == 404
    lonely.sql("UPDATE shards SET state = 'active' WHERE id = $1", row["id"])
    wait_until(lambda: deploy_known(lonely.admin, new_path(), data).status == 201)


def test_nothing_is_linked_while_history_is_lost(lonely: RunningCluster) -> None:
    data = stored(lonely.admin)
    lonely.sql("SELECT place_hold('lost_history', 'a test')")
    assert deploy_known(lonely.admin, new_path(), data).status == 404
    assert lonely.admin.put(new_path(), data).status == 201
