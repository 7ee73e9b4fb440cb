"""AQL over REST: the queries that clients send, the documents they expect, and the limits."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from artifactory import ArtifactoryPath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.repo_node.http import Answer
from tests.repo_node.nodes import PASSWORD, RunningCluster, errors_of, wait_until
from tests.repo_node.people import client_of, grant, new_user

HERE, OTHER = "aql-local", "aql-local-2"
FILES = {
    f"{HERE}/root.txt": {},
    f"{HERE}/a/a.in": {"build.name": ["x"], "os": ["linux", "mac"]},
    f"{HERE}/a/b/b.in": {"os": ["win"]},
    f"{HERE}/a/b/c/c.zip": {"license": ["LGPL-2.1", "LGPL-2.2"]},
    f"{HERE}/a/b/c/d.zip": {"license": ["AGPL-V3"]},
    f"{OTHER}/a/other.in": {"os": ["linux"]},
}
DOWNLOAD_FIELDS = '"name","repo","path","actual_md5","actual_sha1","sha256","size","type","modified","created"'


@pytest.fixture(scope="module", autouse=True)
def filled(one: RunningCluster) -> Iterator[None]:
    for key in (HERE, OTHER):
        one.admin.put_json(f"/artifactory/api/repositories/{key}", {})
    for path, properties in FILES.items():
        matrix = "".join(f";{key}={','.join(values)}" for key, values in properties.items())
        assert one.admin.put(f"/artifactory/{path}{matrix}", path.encode()).status == 201
    one.sql("UPDATE artifacts SET downloads = 3, downloaded_at = now(), downloaded_by = 'ann' WHERE name = 'b.in'")
    yield
    for key in (HERE, OTHER):
        one.admin.delete(f"/artifactory/api/repositories/{key}")


def send(one: RunningCluster, query: str) -> Answer:
    return one.admin.request("POST", "/artifactory/api/search/aql", query.encode(), {"Content-Type": "text/plain"})


def ask(one: RunningCluster, query: str) -> Any:
    answer = send(one, query)
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def found(one: RunningCluster, criteria: str, rest: str = "") -> list[str]:
    results = ask(one, f"items.find({criteria}){rest}")["results"]
    return sorted(f"{one['repo']}/{one['path']}/{one['name']}".replace("/./", "/") for one in results)


def named(*ends: str) -> list[str]:
    return sorted(path for path in FILES if path.endswith(ends))


# What jfrog-client-go makes of a pattern, an exclusion, properties and a sort.
JF = {
    "jf rt search aql-local": (
        '{"$or":[{"$and":[{"repo":"aql-local","path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [path for path in FILES if path.startswith(f"{HERE}/")],
    ),
    "jf rt search aql-local --recursive=false": (
        '{"$or":[{"$and":[{"repo":"aql-local","path":".","name":{"$match":"*"}}]}]}', [f"{HERE}/root.txt"],
    ),
    "jf rt search aql-l*.in": (
        '{"$or":[{"$and":[{"repo":{"$match":"aql-l*"},"path":{"$match":"*"},"name":{"$match":"*.in"}}]},'
        '{"$and":[{"repo":{"$match":"aql-l*.in"},"path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        named(".in"),
    ),
    "jf rt search aql-local/a/b/": (
        '{"path":{"$ne":"."},"$or":[{"$and":[{"repo":"aql-local","path":{"$match":"a/b"},"name":{"$match":"*"}}]},'
        '{"$and":[{"repo":"aql-local","path":{"$match":"a/b/*"},"name":{"$match":"*"}}]}]}',
        named("b.in", ".zip"),
    ),
    "jf rt search aql-local --exclusions=*.zip;*b.in": (
        '{"$or":[{"path":{"$nmatch":"*"},"name":{"$nmatch":"*.zip"}}],"$or":[{"path":{"$nmatch":"*"},"name":{"$nmatch":"*b.in"}}],'
        '"$or":[{"$and":[{"repo":"aql-local","path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [f"{HERE}/root.txt", f"{HERE}/a/a.in"],
    ),
    "jf rt search --props os=linux,mac": (
        '{"$and":[{"@os":"linux"},{"@os":"mac"}],"$or":[{"$and":[{"repo":{"$match":"aql-*"},"path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [f"{HERE}/a/a.in"],
    ),
    "jf rt search --props os=l*": (
        '{"$and":[{"@os":{"$match":"l*"}}],"$or":[{"$and":[{"repo":{"$match":"aql-*"},"path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [f"{HERE}/a/a.in", f"{OTHER}/a/other.in"],
    ),
    "jf rt search --exclude-props os=linux": (
        '{"$or":[{"@os":{"$ne":"linux"}}],"$or":[{"$and":[{"repo":"aql-local","path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [path for path in FILES if path.startswith(f"{HERE}/") and not path.endswith("a.in")],
    ),
    "jf rt search --exclude-props os=l*": (
        '{"$or":[{"@os":{"$ne":{"$match":"l*"}}}],"$or":[{"$and":[{"repo":"aql-local-2","path":{"$match":"*"},"name":{"$match":"*"}}]}]}',
        [],
    ),
    "jf rt search --include-dirs aql-local/a/b": (
        '{"type":"any","path":{"$ne":"."},"$or":[{"$and":[{"repo":"aql-local","path":"a","name":"b"}]}]}', [f"{HERE}/a/b"],
    ),
    "latest build info": (
        '{"repo":"artifactory-build-info","path":{"$match":"x"},"name":{"$match":"1-*.json"}}', [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", JF)
def test_jf_finds_what_it_looks_for(one: RunningCluster, command: str) -> None:
    criteria, expected = JF[command]
    assert found(one, criteria, f'.include({DOWNLOAD_FIELDS},"property")') == sorted(expected)
    assert found(
        one,
        criteria,
        f'.include({DOWNLOAD_FIELDS}).sort({{"$desc":["created","name"]}}).offset(0).transitive().limit(100)',
    ) == sorted(expected)


def test_a_download_learns_all_that_it_verifies(one: RunningCluster) -> None:
    [result] = ask(one, f'items.find({{"repo":"aql-local","name":"a.in"}}).include({DOWNLOAD_FIELDS},"property")')[
        "results"
    ]
    info = one.admin.get(f"/artifactory/api/storage/{HERE}/a/a.in").json()
    assert (result["repo"], result["path"], result["name"], result["type"]) == (HERE, "a", "a.in", "file")
    assert result["size"] == int(info["size"]) and isinstance(result["size"], int)
    assert {"md5": result["actual_md5"], "sha1": result["actual_sha1"], "sha256": result["sha256"]} == info["checksums"]
    assert (result["created"], result["modified"]) == (info["created"], info["lastModified"])
    assert datetime.fromisoformat(result["created"]).tzinfo is not None
    assert {"key": "os", "value": "mac"} in result["properties"] and len(result["properties"]) == 3


def test_everything_is_shown_where_it_is_asked_for(one: RunningCluster) -> None:
    [result] = ask(one, 'items.find({"repo":"aql-local","name":"b.in"}).include("*", "property", "stat")')["results"]
    assert set(result) == {
        "repo", "path", "name", "type", "size", "depth", "created", "created_by", "modified", "modified_by", "updated",
        "original_md5", "actual_md5", "original_sha1", "actual_sha1", "sha256", "properties", "stats",
    }  # fmt: skip
    assert (result["depth"], result["properties"]) == (3, [{"key": "os", "value": "win"}])
    [stats] = result["stats"]
    assert (stats["downloads"], stats["downloaded_by"], stats["remote_downloads"]) == (3, "ann", 0)
    [folder] = ask(one, 'items.find({"type":"folder","name":"c","repo":"aql-local"}).include("*")')["results"]
    assert (folder["path"], folder["size"], folder["type"]) == ("a/b", 0, "folder") and "sha256" not in folder


def test_a_property_that_is_asked_to_be_shown_narrows_what_is_found(one: RunningCluster) -> None:
    results = ask(one, 'items.find({"repo":"aql-local"}).include("name","@os")')["results"]
    assert sorted(result["name"] for result in results) == ["a.in", "b.in"]
    assert all({part["key"] for part in result["properties"]} == {"os"} for result in results)


def test_one_property_that_fulfils_all_is_not_what_each_fulfils(one: RunningCluster) -> None:
    both = '"@license":{"$match":"*GPL*"},"@license":{"$nmatch":"LGPL-2.1*"}'
    assert found(one, f"{{{both}}}") == named("d.zip")
    assert found(one, f'{{"$msp":[{both}]}}') == named("c.zip", "d.zip")


def test_what_was_never_downloaded_is_found_as_cleaners_ask_for_it(one: RunningCluster) -> None:
    never = '{"stat.downloads":{"$eq":null}},{"stat.remote_downloads":{"$eq":null}}'
    criteria = f'{{"$and":[{{"repo":{{"$eq":"aql-local"}}}},{{"$or":[{{"$and":[{never},{{"created":{{"$lte":"2999-01-01"}}}}]}}]}}]}}'
    expected = [path for path in FILES if path.startswith(f"{HERE}/") and not path.endswith("b.in")]
    assert found(one, criteria, '.include("*", "property", "stat")') == sorted(expected)
    assert found(one, '{"repo":"aql-local","stat.downloaded":{"$last":"1d"}}') == [f"{HERE}/a/b/b.in"]
    assert found(one, '{"repo":"aql-local","created":{"$before":"1d"}}') == []


def test_range_says_which_results_these_are(one: RunningCluster) -> None:
    sort = '.sort({"$asc":["repo","path","name"]})'
    whole = ask(one, f'items.find({{"repo":{{"$match":"aql-local*"}}}}){sort}')
    assert whole["range"] == {"start_pos": 0, "end_pos": 6, "total": 6}
    part = ask(one, f'items.find({{"repo":{{"$match":"aql-local*"}}}}){sort}.offset(2).limit(3)')
    assert part["range"] == {"start_pos": 2, "end_pos": 5, "total": 3, "limit": 3}
    assert part["results"] == whole["results"][2:5]
    assert ask(one, "items.find().limit(0)") == {
        "results": [],
        "range": {"start_pos": 0, "end_pos": 0, "total": 0, "limit": 0},
    }


def test_dohq_artifactory_asks(one: RunningCluster) -> None:
    root = ArtifactoryPath(f"http://127.0.0.1:{one.first.port}/artifactory", auth=("admin", PASSWORD))
    results = root.aql(
        "items.find",
        {"$and": [{"repo": HERE}, {"name": {"$match": "*.zip"}}]},
        ".include",
        ["repo", "path", "name", "type"],
        ".sort",
        {"$asc": ["name"]},
        ".limit",
        1,
    )
    assert results == [{"repo": HERE, "path": "a/b/c", "name": "c.zip", "type": "file"}]
    assert root.from_aql(results[0]).read_bytes() == f"{HERE}/a/b/c/c.zip".encode()
    at_root = root.aql("items.find", {"path": ".", "repo": HERE})
    assert [root.from_aql(result).name for result in at_root] == ["root.txt"]


@pytest.mark.parametrize("workload", ["unsorted", "sorted", "from an offset"])
def test_many_results_come_page_by_page_and_whole(one: RunningCluster, workload: str) -> None:
    count = 2_345
    one.sql("INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by) SELECT r.id, 'many', 'n' || i, 'x', 'x' FROM repositories r, generate_series(1, $1) i WHERE r.key = $2 ON CONFLICT DO NOTHING", count, OTHER)  # fmt: skip
    rest = {"unsorted": "", "sorted": '.sort({"$desc":["name"]})', "from an offset": ".offset(45)"}[workload]
    document = ask(
        one, f'items.find({{"repo":"aql-local-2","path":"many","type":"folder"}}).include("repo","path","name"){rest}'
    )
    names = [result["name"] for result in document["results"]]
    skipped = 45 if workload == "from an offset" else 0
    assert len(names) == len(set(names)) == count - skipped == document["range"]["total"]
    if workload == "sorted":
        assert names == sorted(names, reverse=True)


def test_s39_more_results_than_may_be_are_an_error_and_no_part_of_them(one: RunningCluster) -> None:
    one.sql("INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by) SELECT r.id, 'more', 'n' || i, 'x', 'x' FROM repositories r, generate_series(1, 1200) i WHERE r.key = $1 ON CONFLICT DO NOTHING", OTHER)  # fmt: skip
    query = 'items.find({"repo":"aql-local-2","path":"more","type":"folder"})'
    with one.settings(aql_results_max=1_100, aql_sorted_results_max=1_100):
        for rest in ("", ".offset(1)", '.sort({"$asc":["name"]})', ".limit(1150)"):
            status, message = errors_of(send(one, query + rest))
            assert status == 400 and "more than 1100 results" in message
        assert ask(one, query + ".limit(1100)")["range"]["total"] == 1_100
        assert ask(one, query + ".offset(150)")["range"]["total"] == 1_050


def test_s39_a_query_is_bounded_in_size_depth_and_time(one: RunningCluster) -> None:
    status, message = errors_of(send(one, 'items.find({"name":"' + "x" * 70_000 + '"})'))
    assert status == 400 and "aql_query_bytes_max" in message
    assert errors_of(send(one, "items.find(" + '{"$or":[' * 50))[0] == 400
    many = ",".join(['{"name":"x"}'] * 1_001)
    assert "aql_criteria_max" in errors_of(send(one, f'items.find({{"$or":[{many}]}})'))[1]
    with one.settings(search_seconds_max=0.001):
        slow = ",".join(f'{{"name":{{"$match":"*{number}*x*"}}}}' for number in range(500))
        status, message = errors_of(send(one, f'items.find({{"$or":[{slow}]}})'))
    assert status == 400 and "search_seconds_max" in message


@pytest.mark.parametrize(
    "text", ["'", "'; DROP TABLE artifacts; --", "$1", "%", "\\\\", "{}", "x' OR 1=1 --", ")) OR ((true"]
)
def test_s36_text_stays_text(one: RunningCluster, text: str) -> None:
    quoted = json.dumps(text)
    for criterion in (
        '"name":{}',
        '"@k":{}',
        '"repo":{}',
        '"path":{{"$match":{}}}',
        '"created_by":{{"$gte":{}}},"name":"none of that"',
        '"actual_sha1":{}',
    ):
        assert found(one, "{" + criterion.format(quoted) + "}") == []
    key = json.dumps(f"@{text}")
    assert found(one, f'{{{key}:"x"}}') == []
    assert errors_of(send(one, f'items.find({{{json.dumps("x" + text)}:"x"}})'))[0] == 400


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text('items.find({"$or":[a1]})\\ü', max_size=60))
def test_s36_whatever_is_sent_is_answered_or_refused(one: RunningCluster, text: str) -> None:
    answer = send(one, text)
    assert answer.status == 200 or errors_of(answer)[0] == 400


@pytest.mark.parametrize(
    "query",
    [
        'items.find({"artifact.module.build.name":"x","artifact.module.build.number":"1"})',
        'items.find({"archive.entry.name":"x"})',
        'builds.find({"name":"x"})',
        'items.find({"$and":[{"release_artifact.release.name":"x"}]})',
    ],
)
def test_what_is_not_kept_here_is_refused_rather_than_found_empty(one: RunningCluster, query: str) -> None:
    assert errors_of(send(one, query))[0] == 400


def test_who_may_not_read_may_not_ask(one: RunningCluster) -> None:
    query = b"items.find()"
    assert one.first.client().request("POST", "/artifactory/api/search/aql", query).status == 401
    assert one.with_token("metrics").request("POST", "/artifactory/api/search/aql", query).status == 403
    assert one.with_token("read").request("POST", "/artifactory/api/search/aql", query).status == 200


def test_a_query_is_answered_while_nothing_may_be_changed(one: RunningCluster) -> None:
    with one.settings(read_only_reason="moving"):
        assert ask(one, 'items.find({"repo":"aql-local","name":"root.txt"})')["range"]["total"] == 1


def test_s5_a_query_finds_what_its_sender_may_read_and_counts_only_that(one: RunningCluster) -> None:
    user = new_user(one)
    grant(one, user, ["read"], [HERE], includes=["a/b/**"])
    who, place = client_of(one, user), '"repo","path","name"'

    def found_by_user(criteria: str, rest: str = f".include({place})") -> list[str]:
        answer = who.request("POST", "/artifactory/api/search/aql", f"items.find({criteria}){rest}".encode())
        assert answer.status == 200, answer
        return [result["name"] for result in answer.json()["results"]]

    assert sorted(found_by_user("{}")) == ["b.in", "c.zip", "d.zip"]
    assert found_by_user("{}", '.sort({"$asc":["name"]}).offset(1).limit(1)') == ["c.zip"]
    assert found_by_user(f'{{"repo":"{OTHER}"}}') == found_by_user('{"@os":"mac"}') == []
    sha1 = one.sql(
        "SELECT encode(b.sha1, 'hex') FROM blobs b JOIN artifacts a ON a.blob_id = b.id WHERE a.name = 'a.in' AND a.folder = 'a'"
    )[0][0]
    assert found_by_user(f'{{"actual_sha1":"{sha1}"}}') == []
    assert found(one, f'{{"actual_sha1":"{sha1}"}}') == [f"{HERE}/a/a.in"]


def test_who_is_no_administrator_says_what_of_the_answer_is(one: RunningCluster) -> None:
    user = new_user(one)
    grant(one, user, ["read"], [HERE])
    who = client_of(one, user)
    for include, status in (("", 200), ('.include("name")', 400), ('.include("size","repo","path","name")', 200)):
        query = f'items.find({{"name":"a.in"}}){include}'.encode()
        assert who.request("POST", "/artifactory/api/search/aql", query).status == status
    assert one.admin.request("POST", "/artifactory/api/search/aql", b'items.find().include("name")').status == 200
    nobody = client_of(one, new_user(one))
    assert nobody.request("POST", "/artifactory/api/search/aql", b"items.find()").status == 403


def test_s39_long_answers_are_sent_so_many_at_once_and_short_ones_beside_them(one: RunningCluster) -> None:
    one.sql(
        "INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by) SELECT r.id, 'long', rpad('n' || i, 200, 'x'), 'x', 'x'"
        " FROM repositories r, generate_series(1, 12000) i WHERE r.key = $1", OTHER,
    )  # fmt: skip
    query = b'items.find({"repo":"aql-local-2","path":"long","type":"folder"})'
    head = f"POST /artifactory/api/search/aql HTTP/1.1\r\nHost: x\r\nAuthorization: {one.admin.authorization}\r\n"
    with (
        one.settings(aql_long_answers_at_once_max=1, search_seconds_max=1.0),
        socket.create_connection(("127.0.0.1", one.first.port), 30) as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(f"{head}Content-Length: {len(query)}\r\n\r\n".encode() + query)
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        status, message = errors_of(send(one, f"{query.decode()}.limit(1001)"))
        assert status == 503 and "long answers" in message
        assert ask(one, 'items.find({"repo":"aql-local","name":"root.txt"})')["range"]["total"] == 1
    wait_until(lambda: send(one, f"{query.decode()}.limit(1001)").status == 200)
