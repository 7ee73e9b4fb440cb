"""What rights let somebody do with artifacts, by path: each verb, each search, and what is not told."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from unittest.mock import patch
from uuid import uuid4

import pytest

from sharding.provider import ShardingProvider
from tests.repo_node.http import Client
from tests.repo_node.nodes import RunningCluster, random_bytes, wait_until
from tests.repo_node.people import client_of, grant, new_user, somebody
from tests.repo_node.statements import statements_sent

REPO = "/artifactory/generic-local"
STORAGE = "/artifactory/api/storage/generic-local"


def soon(ask: Callable[[], int], status: int) -> bool:
    """Wait until what is asked is answered so: a change holds everywhere within two seconds."""
    wait_until(lambda: ask() == status, 2.0)
    return True


@pytest.fixture
def place(one: RunningCluster) -> str:
    """A folder of this test's own with an artifact ``open/a`` and one ``closed/b``."""
    name = f"rights-{uuid4().hex[:12]}"
    for path in ("open/a", "closed/b"):
        assert one.admin.put(f"{REPO}/{name}/{path}", path.encode()).status == 201
    return name


VERBS = {
    "read": ("GET", REPO, "", b""),
    "write": ("PUT", REPO, "-new", b"x"),
    "annotate": ("PUT", STORAGE, "?properties=k=v", b""),
    "delete": ("DELETE", REPO, "", b""),
}


@pytest.mark.parametrize("action", ["read", "write", "annotate", "delete", "manage", None])
def test_s5_each_verb_needs_its_own_permission_where_the_path_is(
    one: RunningCluster, place: str, action: str | None
) -> None:
    who = somebody(one, *([action] if action else []), includes=[f"{place}/open/**"])
    for path, is_open in (("closed/b", False), ("open/a", True)):
        for needed, (verb, base, suffix, body) in VERBS.items():
            answer = who.request(verb, f"{base}/{place}/{path}{suffix}", body)
            assert (answer.status != 403) is (is_open and needed == action), (needed, path, answer)


def test_s5_a_token_narrows_what_its_user_may(one: RunningCluster, place: str) -> None:
    user = new_user(one)
    grant(one, user, ["read", "write", "annotate", "delete"])
    for scope in VERBS:
        who = client_of(one, user, scope)
        for needed, (verb, base, suffix, body) in VERBS.items():
            may = needed == scope or (needed, scope) == ("annotate", "write")
            status = who.request(verb, f"{base}/{place}/open/a{suffix}", body).status
            assert (status != 403) is may, (needed, scope)
            if needed == "delete" and may:
                one.admin.put(f"{REPO}/{place}/open/a", b"open/a")


def test_a_right_in_one_repository_is_none_in_another(one: RunningCluster, place: str) -> None:
    user = new_user(one)
    grant(one, user, ["read"], ["another"])
    who = client_of(one, user)
    assert who.get(f"{REPO}/{place}/open/a").status == 403
    grant(one, user, ["read"], ["ANY LOCAL"])
    assert soon(lambda: who.get(f"{REPO}/{place}/open/a").status, 200)


def test_a_change_of_rights_holds_at_once_on_every_node(three: RunningCluster) -> None:
    path = f"{REPO}/{uuid4().hex}"
    assert three.admin.put(path, b"x").status == 201
    user = new_user(three)
    clients = [client_of(three, user, node=n) for n in range(3)]
    assert [who.get(path).status for who in clients] == [403] * 3
    grant(three, user, ["read"])
    for who in clients:
        assert soon(lambda who=who: who.get(path).status, 200)  # type: ignore[misc]
    three.sql("DELETE FROM permission_grants WHERE user_id = (SELECT id FROM users WHERE name = $1)", user)
    for who in clients:
        assert soon(lambda who=who: who.get(path).status, 403)  # type: ignore[misc]


# ---------------------------------------------------------------------- overwriting, deleting folders


def test_who_may_not_delete_overwrites_nothing(one: RunningCluster, place: str) -> None:
    who, path, body = somebody(one, "read", "write"), f"{REPO}/{place}/open/new", random_bytes(20_000)
    sha256 = hashlib.sha256(body).hexdigest()
    assert who.put(path, body).status == 201
    assert who.put(path, body).status == 201, "the same again changes nothing"
    refused = who.put(path, random_bytes(20_000))
    assert refused.status == 403 and b"delete" in refused.body
    assert who.put(f"{REPO}/{place}/open/a", b"", X_Checksum_Deploy="true", X_Checksum_Sha256=sha256).status == 403
    assert who.get(path).body == body and who.get(f"{REPO}/{place}/open/a").body == b"open/a"
    assert one.admin.put(path, b"other").status == 201
    both = somebody(one, "write", "delete")
    assert both.put(path, b"another").status == 201


def test_properties_with_a_deploy_need_annotate(one: RunningCluster, place: str) -> None:
    assert somebody(one, "write").put(f"{REPO}/{place}/p;k=v", b"x").status == 403
    assert somebody(one, "write", "annotate").put(f"{REPO}/{place}/p;k=v", b"x").status == 201


def test_a_folder_goes_only_by_who_may_delete_all_that_may_lie_in_it(one: RunningCluster, place: str) -> None:
    holes = somebody(one, "read", "delete", includes=[f"{place}/**"], excludes=[f"{place}/closed/**"])
    assert holes.delete(f"{REPO}/{place}").status == 403
    assert holes.delete(f"{REPO}/{place}/closed/b").status == 403
    assert holes.delete(f"{REPO}/{place}/open/a").status == 204
    assert holes.delete(f"{REPO}/{place}/open").status == 204
    assert one.admin.get(f"{REPO}/{place}/closed/b").status == 200


def test_properties_of_a_folder_change_only_by_who_may_annotate_all_in_it(one: RunningCluster, place: str) -> None:
    holes = somebody(one, "annotate", includes=[f"{place}/**"], excludes=[f"{place}/closed/**"])
    assert holes.request("PUT", f"{STORAGE}/{place}?properties=k=v").status == 403
    assert holes.request("PUT", f"{STORAGE}/{place}?properties=k=v&recursive=0").status == 204
    assert holes.request("PUT", f"{STORAGE}/{place}/open?properties=k=v").status == 204
    one_name = somebody(one, "annotate", includes=[f"{place}/*/a"])
    assert one_name.request("PUT", f"{STORAGE}/{place}/open/a?properties=q=v").status == 204
    assert one.admin.get(f"{STORAGE}/{place}/closed/b?properties").status == 404


# ---------------------------------------------------------------------- copy and move


def transfer(who: Client, verb: str, source: str, to: str) -> tuple[int, str]:
    answer = who.request("POST", f"/artifactory/api/{verb}/generic-local/{source}?to=/generic-local/{to}")
    return answer.status, answer.body.decode()


def test_s5_a_copy_needs_read_where_it_is_and_write_where_it_goes(one: RunningCluster, place: str) -> None:
    reader = somebody(one, "read")
    assert transfer(reader, "copy", f"{place}/open/a", f"{place}/copied")[0] == 403
    writer = somebody(one, "write")
    assert transfer(writer, "copy", f"{place}/open/a", f"{place}/copied")[0] == 403
    user = new_user(one)
    grant(one, user, ["read"], includes=[f"{place}/open/**"])
    grant(one, user, ["write"], includes=[f"{place}/to/**"])
    who = client_of(one, user)
    assert transfer(who, "copy", f"{place}/closed/b", f"{place}/to/b")[0] == 403
    assert transfer(who, "copy", f"{place}/open/a", f"{place}/elsewhere/a")[0] == 403
    assert transfer(who, "copy", f"{place}/open/a", f"{place}/to/a")[0] == 200
    assert transfer(who, "move", f"{place}/open/a", f"{place}/to/a2")[0] == 403
    assert one.admin.put(f"{REPO}/{place}/to/taken", b"something else").status == 201
    assert transfer(who, "copy", f"{place}/open/a", f"{place}/to/taken")[0] == 403
    assert one.admin.get(f"{REPO}/{place}/to/taken").body == b"something else"
    grant(one, user, ["delete"], includes=[f"{place}/open/**", f"{place}/to/**"])
    assert soon(lambda: transfer(who, "copy", f"{place}/open/a", f"{place}/to/taken")[0], 200)
    assert transfer(who, "move", f"{place}/open/a", f"{place}/to/a3")[0] == 200


def test_a_folder_that_may_be_read_in_part_is_copied_in_part_and_says_so(one: RunningCluster, place: str) -> None:
    user = new_user(one)
    grant(one, user, ["read"], includes=[f"{place}/**"], excludes=[f"{place}/closed/**"])
    grant(one, user, ["write"], includes=["copies/**"])
    who, to = client_of(one, user), f"copies/{place}"
    status, told = transfer(who, "copy", place, to)
    assert status == 409 and "read" in told
    # Whoever sees no name in a list sees none in a refusal.
    assert "closed" not in told and "closed" not in transfer(who, "copy", place, f"{to}-2&dry=1")[1]
    assert one.admin.get(f"{REPO}/{to}/open/a").status == 200
    assert one.admin.get(f"{REPO}/{to}/closed/b").status == 404


def test_a_move_leaves_what_may_not_be_deleted(one: RunningCluster, place: str) -> None:
    user = new_user(one)
    grant(one, user, ["read", "write"])
    grant(one, user, ["delete"], includes=[f"{place}/open/**"])
    who = client_of(one, user)
    assert transfer(who, "move", place, f"moved/{place}")[0] == 409
    assert [one.admin.get(f"{REPO}/{path}").status for path in (f"{place}/open/a", f"{place}/closed/b")] == [404, 200]


# ---------------------------------------------------------------------- what is told


def test_folders_lists_and_archives_tell_only_of_what_may_be_read(one: RunningCluster, place: str) -> None:
    who = somebody(one, "read", includes=[f"{place}/open/**"])
    assert [one["uri"] for one in who.get(f"{STORAGE}/{place}").json()["children"]] == ["/open"]
    listed = who.get(f"{STORAGE}/{place}?list&deep=1&listFolders=1").json()["files"]
    assert [one["uri"] for one in listed] == ["/open", "/open/a"]
    assert who.get(f"{STORAGE}/{place}?lastModified").json()["uri"].endswith("/open/a")
    archive = who.get(f"/artifactory/api/archive/download/generic-local/{place}?archiveType=zip")
    assert zipfile.ZipFile(io.BytesIO(archive.body)).namelist() == ["open/a"]
    assert one.admin.request("PUT", f"{STORAGE}/{place}?properties=k=v&recursive=0").status == 204
    assert who.get(f"{STORAGE}/{place}").status == 200 and who.get(f"{STORAGE}/{place}?properties").status == 403
    assert who.get(f"{STORAGE}/{place}/closed").status == 403
    for part in ("", "?stats", "?properties", "?lastModified"):
        assert who.get(f"{STORAGE}/{place}/closed/b{part}").status == 403


def test_s5_searches_find_only_what_may_be_read(one: RunningCluster, place: str) -> None:
    for path in ("open/a", "closed/b"):
        assert one.admin.request("PUT", f"{STORAGE}/{place}/{path}?properties=tag={place}").status == 204
    who, nobody = somebody(one, "read", includes=[f"{place}/open/**"]), somebody(one, "write")
    digests = {path: hashlib.sha256(path.encode()).hexdigest() for path in ("open/a", "closed/b")}
    base = "/artifactory/api/search"

    def found(client: Client, query: str) -> list[str]:
        hits = client.get(f"{base}/{query}").json()["results"]
        return sorted(hit["uri"].partition(place)[2] for hit in hits if place in hit["uri"])

    assert found(one.admin, f"prop?tag={place}") == ["/closed/b", "/open/a"]
    assert found(who, f"prop?tag={place}") == ["/open/a"]
    assert found(who, "artifact?name=b&repos=generic-local") == []
    assert found(who, f"checksum?sha256={digests['open/a']}") == ["/open/a"]
    assert found(who, f"checksum?sha256={digests['closed/b']}") == []
    assert found(who, "creation?from=0") == ["/open/a"]
    pattern = who.get(f"{base}/pattern?pattern=generic-local:{place}/**").json()["files"]
    assert pattern == [f"{place}/open/a"]
    assert nobody.get(f"{base}/prop?tag={place}").status == 403
    assert nobody.get("/artifactory/api/repositories").status == 403


def test_a_search_counts_only_what_may_be_read_towards_its_limit(one: RunningCluster, place: str) -> None:
    for n in range(6):
        assert one.admin.put(f"{REPO}/{place}/closed/limit-{place}-{n}", b"x").status == 201
    assert one.admin.put(f"{REPO}/{place}/open/limit-{place}", b"x").status == 201
    who = somebody(one, "read", includes=[f"{place}/open/**"])
    with one.settings(search_results_max=1):
        hits = who.get(f"/artifactory/api/search/artifact?name=limit-{place}*").json()["results"]
    assert [hit["uri"].rpartition("/")[2] for hit in hits] == [f"limit-{place}"]


def test_repositories_are_listed_for_who_may_read_in_them(one: RunningCluster) -> None:
    user, key = new_user(one), f"r-{uuid4().hex[:12]}"
    assert one.admin.put_json(f"/artifactory/api/repositories/{key}", {"rclass": "local"}).status == 200
    grant(one, user, ["read"], [key], includes=["deep/inside/*"])
    who = client_of(one, user)
    assert [found["key"] for found in who.get("/artifactory/api/repositories").json()] == [key]
    assert who.get(f"/artifactory/api/repositories/{key}").status == 200
    assert who.get("/artifactory/api/repositories/generic-local").status == 403
    assert who.get("/artifactory/api/repositories/nowhere").status == 403


def test_s6_a_deploy_by_checksum_finds_only_content_that_may_be_read(one: RunningCluster, place: str) -> None:
    body = random_bytes(9_000)
    assert one.admin.put(f"{REPO}/{place}/closed/secret", body).status == 201
    who = somebody(one, "read", "write", includes=[f"{place}/open/**"])

    def ask(digest: str) -> tuple[int, dict[str, str], bytes]:
        answer = who.put(f"{REPO}/{place}/open/stolen", X_Checksum_Deploy="true", X_Checksum_Sha256=digest)
        return answer.status, answer.head(), answer.body

    known, unknown = ask(hashlib.sha256(body).hexdigest()), ask(hashlib.sha256(random_bytes(10)).hexdigest())
    assert known == unknown and known[0] == 404
    assert one.admin.put(f"{REPO}/{place}/open/mine", body).status == 201
    assert ask(hashlib.sha256(body).hexdigest())[0] == 201


def test_s6_content_that_may_not_be_read_costs_what_unknown_content_does(one: RunningCluster, place: str) -> None:
    """The same statements are asked, and no shard: the answers cannot be told apart by their time either."""
    body = random_bytes(9_000)
    assert one.admin.put(f"{REPO}/{place}/closed/secret", body).status == 201
    who = somebody(one, "read", "write", includes=[f"{place}/open/**"])

    def cost(content: bytes, name: str) -> list[str]:
        headers = {f"X-Checksum-{name}": hashlib.new(name, content).hexdigest(), "X-Checksum-Deploy": "true"}
        identity = uuid4().hex
        with statements_sent() as sent, patch.object(ShardingProvider, "confirm", side_effect=AssertionError) as shards:
            answer = who.request("PUT", f"{REPO}/{place}/open/x", b"", {**headers, "X-Request-Id": identity})
        assert answer.status == 404 and not shards.called
        return [one.name for one in sent if one.request == identity or one.name.startswith("known_by")]

    for name in ("sha256", "sha1", "md5"):
        cost(random_bytes(5), name)  # who asks, and which repositories there are, is remembered from here on
        known, unknown = cost(body, name), cost(random_bytes(9_000), name)
        assert known == unknown == [f"known_by_{name}_in_scope"]


def test_a_deploy_by_checksum_of_who_may_read_a_part_does_not_list_repositories_each_time(
    one: RunningCluster, place: str
) -> None:
    body = random_bytes(10)
    assert one.admin.put(f"{REPO}/{place}/open/here", body).status == 201
    who, headers = somebody(one, "read", "write"), {"X_Checksum_Sha256": hashlib.sha256(body).hexdigest()}

    def deploy() -> float:
        assert who.put(f"{REPO}/{place}/open/{uuid4()}", X_Checksum_Deploy="true", **headers).status == 201
        return one.first.metric("holdfast_database_query_duration_seconds_count", query="repositories_list")

    deploy()
    assert deploy() == deploy()


# ---------------------------------------------------------------------- anonymous access, hidden existence


def test_s4_without_credentials_nothing_is_served_until_that_is_switched_on(one: RunningCluster, place: str) -> None:
    path, nobody = f"{REPO}/{place}/open/a", one.first.client()
    grant(one, "anonymous", ["read"], includes=[f"{place}/open/**"])
    assert nobody.get(path).status == 401
    with one.settings(anonymous_access=True):
        assert nobody.get(path).status == 200
        refused = nobody.get(f"{REPO}/{place}/closed/b")
        assert refused.status == 401 and refused.headers["WWW-Authenticate"]
        assert nobody.put(path, b"x").status == 401
        assert nobody.get("/artifactory/api/holdfast/settings").status == 401
        assert one.first.client("Basic YW5vbnltb3VzOiE=").get(path).status == 401, "it has no password"
    assert nobody.get(path).status == 401


@pytest.mark.parametrize("base", [REPO, STORAGE, "/artifactory/api/archive/download/generic-local"])
def test_s7_what_may_not_be_known_is_answered_as_what_is_not_there(one: RunningCluster, place: str, base: str) -> None:
    who = somebody(one, "read", includes=[f"{place}/open/**"])
    query = "?archiveType=zip" if "archive" in base else ""
    hidden, absent = f"{base}/{place}/closed/b{query}", f"{base}/{place}/closed/nothing{query}"
    missing = f"{base}/{place}/open/nothing{query}"
    assert who.get(hidden).status == 403
    with one.settings(hide_unauthorised_resources=True):
        answers = [who.get(path) for path in (hidden, absent, missing)]
        assert {(answer.status, answer.body, json.dumps(answer.head())) for answer in answers} == {
            (404, answers[0].body, json.dumps(answers[0].head()))
        }
        assert who.put(f"{REPO}/{place}/open/a", b"x").status == 403, "it may be read, and so be known"
        assert who.put(f"{REPO}/{place}/closed/b", b"x").status == 404


MUTATORS = ["{}/", "/{}", "{};k=v", "{}%2F", "{}/.", "{}/../b", "{}//", "{}%00", "{}\\", "{}?x=1"]


@pytest.mark.parametrize("mutator", MUTATORS)
def test_s3_no_way_to_write_a_path_changes_the_decision(one: RunningCluster, place: str, mutator: str) -> None:
    who = somebody(one, "read", "write", "delete", "annotate", includes=[f"{place}/open/**"])
    hidden = mutator.format(f"{REPO}/{place}/closed/b")
    for verb in ("GET", "HEAD", "PUT", "DELETE"):
        assert who.request(verb, hidden, b"").status in (400, 403), verb
    upper = f"{REPO}/{place}/OPEN/a"
    assert who.get(upper).status == 403
    assert one.admin.get(f"{REPO}/{place}/closed/b").body == b"closed/b"


def test_who_manages_an_item_is_told_who_may_do_what(one: RunningCluster, place: str) -> None:
    user, reader = new_user(one), new_user(one)
    grant(one, user, ["read", "manage"], includes=[f"{place}/open/**"])
    grant(one, user, ["write"], ["ANY LOCAL"], includes=[f"{place}/**"])
    grant(one, reader, ["read", "delete"], includes=[f"{place}/**"], excludes=[f"{place}/open/a"])
    grant(one, reader, ["annotate"], ["another"])
    who = client_of(one, user)
    answer = who.get(f"{STORAGE}/{place}/open/a?permissions")
    assert answer.status == 200 and answer.json()["uri"].endswith(f"{STORAGE}/{place}/open/a")
    principals = answer.json()["principals"]
    assert principals["users"][user] == ["r", "w", "m"]
    assert reader not in principals["users"]
    beside = one.admin.get(f"{STORAGE}/{place}/closed/b?permissions").json()["principals"]
    assert beside["users"][user] == ["w"] and beside["users"][reader] == ["r", "d"]
    assert who.get(f"{STORAGE}/{place}/closed/b?permissions").status == 403
    assert client_of(one, reader).get(f"{STORAGE}/{place}/closed/b?permissions").status == 403
    assert one.admin.get(f"{STORAGE}/{place}/none?permissions").status == 404
    assert set(one.admin.get(f"{STORAGE}?permissions").json()["principals"]) == {"users", "groups"}


def test_the_permissions_of_groups_are_told_by_their_names(one: RunningCluster, place: str) -> None:
    one.sql("INSERT INTO groups (name) VALUES ($1)", place)
    one.sql("INSERT INTO permission_targets (name, repositories) VALUES ($1, '{generic-local}')", place)
    one.sql(
        """
        INSERT INTO permission_grants (target_id, group_id, actions)
        SELECT t.id, g.id, '{read,annotate}' FROM permission_targets t, groups g WHERE t.name = $1 AND g.name = $1
        """,
        place,
    )
    principals = one.admin.get(f"{STORAGE}/{place}?permissions").json()["principals"]
    assert principals["groups"][place] == ["r", "n"]
