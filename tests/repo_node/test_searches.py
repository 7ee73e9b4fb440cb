"""Searches over REST: what is found, in which detail, in which repositories, and within which limits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of

HERE, OTHER = "search-here", "search-other"
FILES = {
    f"{HERE}/org/acme/lib/1.0/lib-1.0.jar": {"version": ["1.0"], "os": ["linux", "mac"]},
    f"{HERE}/org/acme/lib/1.0/lib-1.0-sources.jar": {},
    f"{HERE}/org/acme/lib/1.10/lib-1.10.jar": {"version": ["1.10"], "os": ["linux"]},
    f"{HERE}/org/acme/lib/1.9/lib-1.9.jar": {"version": ["1.9"], "os": ["win"]},
    f"{HERE}/org/acme/lib/2.0-SNAPSHOT/lib-2.0-SNAPSHOT.jar": {},
    f"{HERE}/plain_100%.txt": {},
    f"{OTHER}/org/acme/lib/3.0/lib-3.0.jar": {"version": ["3.0"], "os": ["linux"]},
    f"{OTHER}/ünï/lib.txt": {"quality": ["höchste"]},
}
BOTH = f"{HERE},{OTHER}"


@pytest.fixture(scope="module", autouse=True)
def filled(one: RunningCluster) -> Iterator[None]:
    for key in (HERE, OTHER):
        one.admin.put_json(f"/artifactory/api/repositories/{key}", {})
    for path, properties in FILES.items():
        matrix = "".join(f";{key}={quote(','.join(values))}" for key, values in properties.items())
        assert one.admin.put(f"/artifactory/{quote(path)}{matrix}", path.encode()).status == 201
    yield
    for key in (HERE, OTHER):
        one.admin.delete(f"/artifactory/api/repositories/{key}")


def ask(one: RunningCluster, search: str, **headers: str) -> Answer:
    return one.admin.get(f"/artifactory/api/search/{search}", **headers)


def found(one: RunningCluster, search: str) -> list[str]:
    """Return the repositories and paths of what a search finds."""
    answer = ask(one, search)
    assert answer.status == 200, answer
    base = f"http://127.0.0.1:{one.first.port}/artifactory/api/storage/"
    return [result["uri"].removeprefix(base) for result in answer.json()["results"]]


def quoted(*paths: str) -> list[str]:
    return sorted(quote(path) for path in paths)


LIB = "org/acme/lib"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("artifact?name=lib-1.0", [f"{HERE}/{LIB}/1.0/lib-1.0-sources.jar", f"{HERE}/{LIB}/1.0/lib-1.0.jar"]),
        ("artifact?name=lib-1.0.*", [f"{HERE}/{LIB}/1.0/lib-1.0.jar"]),
        ("artifact?name=lib-?.0.jar", [f"{HERE}/{LIB}/1.0/lib-1.0.jar", f"{OTHER}/{LIB}/3.0/lib-3.0.jar"]),
        ("artifact?name=*sources*", [f"{HERE}/{LIB}/1.0/lib-1.0-sources.jar"]),
        ("artifact?name=0%25", [f"{HERE}/plain_100%.txt"]),
        ("artifact?name=n_1", [f"{HERE}/plain_100%.txt"]),
        ("artifact?name=lib", []),  # nothing else is called so in the repositories asked for, below
        ("prop?os=linux&version=1.0", [f"{HERE}/{LIB}/1.0/lib-1.0.jar"]),
        ("prop?os=linux,mac", [f"{HERE}/{LIB}/1.0/lib-1.0.jar"]),
        ("prop?version=1.*", [f"{HERE}/{LIB}/{v}/lib-{v}.jar" for v in ("1.0", "1.10", "1.9")]),
        ("prop?quality", [f"{OTHER}/ünï/lib.txt"]),
        ("prop?quality=*", [f"{OTHER}/ünï/lib.txt"]),
        ("prop?quality=h%C3%B6*", [f"{OTHER}/ünï/lib.txt"]),
        ("prop?os=none", []),
        ("gavc?g=org.acme&a=lib&v=1.0", [f"{HERE}/{LIB}/1.0/lib-1.0-sources.jar", f"{HERE}/{LIB}/1.0/lib-1.0.jar"]),
        ("gavc?g=org.acme&v=1.0&c=sources", [f"{HERE}/{LIB}/1.0/lib-1.0-sources.jar"]),
        ("gavc?a=lib&v=3.*", [f"{OTHER}/{LIB}/3.0/lib-3.0.jar"]),
        ("gavc?g=org&a=lib", []),
    ],
)
def test_what_is_found(one: RunningCluster, query: str, expected: list[str]) -> None:
    repositories = OTHER + "-none" if query == "artifact?name=lib" else BOTH
    assert sorted(found(one, f"{query}&repos={repositories}")) == quoted(*expected)


def test_repositories_narrow_a_search(one: RunningCluster) -> None:
    path = f"{OTHER}/{LIB}/3.0/lib-3.0.jar"
    assert found(one, f"artifact?name=lib-3.0*&repos={OTHER}") == [path]
    assert found(one, f"artifact?name=lib-3.0*&repos={HERE}") == []
    assert found(one, "artifact?name=lib-3.0*") == [path]


def test_content_is_found_by_its_checksums(one: RunningCluster) -> None:
    path = f"{HERE}/plain_100%.txt"
    for kind in ("sha256", "sha1", "md5"):
        digest = hashlib.new(kind, path.encode()).hexdigest()
        assert found(one, f"checksum?{kind}={digest}&repos={BOTH}") == quoted(path)
        assert found(one, f"checksum?{kind}={digest}&repos={OTHER}") == []
    assert found(one, f"checksum?md5={'0' * 32}") == []


def test_a_pattern_gives_the_paths_in_one_repository(one: RunningCluster) -> None:
    document = ask(one, f"pattern?pattern={HERE}:org/*/lib/1.*/*.jar").json()
    assert document["repositoryUri"].endswith(f"/artifactory/{HERE}")
    assert document["sourcePattern"] == f"{HERE}:org/*/lib/1.*/*.jar"
    assert document["files"] == [
        f"{LIB}/1.0/lib-1.0-sources.jar",
        f"{LIB}/1.0/lib-1.0.jar",
        f"{LIB}/1.10/lib-1.10.jar",
        f"{LIB}/1.9/lib-1.9.jar",
    ]
    assert ask(one, f"pattern?pattern={HERE}:**/*sources*").json()["files"] == [f"{LIB}/1.0/lib-1.0-sources.jar"]


def test_detail_is_added_where_it_is_asked_for(one: RunningCluster) -> None:
    search = f"artifact?name=lib-1.0.jar&repos={HERE}"
    [plain] = ask(one, search).json()["results"]
    assert list(plain) == ["uri"]
    [whole] = ask(one, search, X_Result_Detail="info, properties").json()["results"]
    info = one.admin.get(f"/artifactory/api/storage/{HERE}/{LIB}/1.0/lib-1.0.jar").json()
    assert whole == info | {"properties": {"version": ["1.0"], "os": ["linux", "mac"]}}
    [some] = ask(one, search, X_Result_Detail="properties").json()["results"]
    assert set(some) == {"uri", "properties"}


def test_folders_are_found_by_their_properties(one: RunningCluster) -> None:
    one.admin.put(f"/artifactory/api/storage/{HERE}/org/acme?properties=team=blue&recursive=0")
    assert found(one, "prop?team=blue") == [f"{HERE}/org/acme"]
    [whole] = ask(one, "prop?team=blue", X_Result_Detail="info").json()["results"]
    assert whole["path"] == "/org/acme" and "size" not in whole


def test_times_find_what_was_made_changed_and_used(one: RunningCluster) -> None:
    now = int(time.time() * 1000)
    hour = 3_600_000
    lately = f"from={now - hour}&to={now + hour}&repos={HERE}"
    here = quoted(*(path for path in FILES if path.startswith(HERE)))
    assert sorted(found(one, f"creation?{lately}")) == here
    assert sorted(found(one, f"dates?dateFields=created,lastModified&{lately}")) == here
    assert found(one, f"dates?dateFields=lastDownloaded&{lately}") == []
    assert found(one, f"creation?from=0&to={now - hour}&repos={HERE}") == []
    assert sorted(found(one, f"usage?notUsedSince={now + hour}&repos={HERE}")) == here
    assert found(one, f"usage?notUsedSince={now + hour}&createdBefore={now - hour}&repos={HERE}") == []
    one.sql("UPDATE artifacts SET downloads = 3, downloaded_at = now() WHERE name = 'lib-1.9.jar'")
    [used] = ask(one, f"dates?dateFields=lastDownloaded,created&from={now - hour}&repos={HERE}").json()["results"][-1:]
    assert {"uri", "created"} <= set(used)
    assert found(one, f"dates?dateFields=lastDownloaded&{lately}") == [f"{HERE}/{LIB}/1.9/lib-1.9.jar"]
    assert f"{HERE}/{LIB}/1.9/lib-1.9.jar" not in found(
        one, f"usage?notUsedSince={now - hour}&createdBefore={now + hour}&repos={HERE}"
    )


def test_versions_of_a_module(one: RunningCluster) -> None:
    answer = ask(one, f"versions?g=org.acme&a=lib&repos={HERE}").json()
    assert answer["results"] == [
        {"version": "2.0-SNAPSHOT", "integration": True},
        {"version": "1.10", "integration": False},
        {"version": "1.9", "integration": False},
        {"version": "1.0", "integration": False},
    ]
    latest = ask(one, f"latestVersion?g=org.acme&a=lib&repos={HERE}")
    assert (latest.body, latest.headers["Content-Type"].split(";")[0]) == (b"1.10", "text/plain")
    assert ask(one, f"latestVersion?g=org.acme&a=lib&v=1.0&repos={HERE}").body == b"1.0"
    assert ask(one, f"latestVersion?g=org.acme&a=lib&repos={BOTH}").body == b"3.0"
    assert errors_of(ask(one, "latestVersion?g=org.acme&a=none"))[0] == 404


def test_latest_version_by_property(one: RunningCluster) -> None:
    base = f"http://127.0.0.1:{one.first.port}/artifactory"

    def latest(where: str, query: str) -> Any:
        answer = one.admin.get(f"/artifactory/api/versions/{where}?{query}")
        assert answer.status == 200, answer
        return answer.json()

    assert latest(f"{HERE}/org/acme", "") == {"version": "1.10", "artifacts": []}
    assert latest(f"{HERE}/_any", "os=win&listFiles=1") == {
        "version": "1.9",
        "artifacts": [{"uri": f"{base}/{HERE}/{LIB}/1.9/lib-1.9.jar"}],
    }
    assert latest("_any/_any", "os=linux")["version"] == "3.0"
    assert latest(f"{HERE}/{LIB}/1.0", "listFiles=1")["version"] == "1.0"
    for where, query in ((f"{HERE}/org/none", ""), (f"{HERE}/_any", "os=none"), ("none/_any", "")):
        assert errors_of(one.admin.get(f"/artifactory/api/versions/{where}?{query}"))[0] == 404


@pytest.mark.parametrize(
    "query",
    [
        "artifact", "artifact?name=", "prop", "prop?repos=x", "prop?a%20b=1", "checksum", "checksum?sha1=xyz", "gavc",
        "pattern?pattern=x", "pattern?pattern=:x", "dates", "dates?from=x", "dates?from=1&dateFields=none", "usage",
        "creation?from=99999999999999999999", "versions?g=x", f"artifact?name={'x' * 2000}", "artifact?name=%00",
    ],
)  # fmt: skip
def test_what_cannot_be_searched_for_is_refused(one: RunningCluster, query: str) -> None:
    assert errors_of(ask(one, query))[0] == 400


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE artifacts; --", "%' OR 1=1 --", "\\", "a*'", '"}', "(((((", "[[", "$7"]
)
def test_text_stays_text(one: RunningCluster, value: str) -> None:
    for query in (f"artifact?name={quote(value)}", f"prop?k={quote(value)}", f"gavc?g={quote(value)}&a={quote(value)}"):
        assert found(one, f"{query}&repos={BOTH}") == []
    assert ask(one, f"pattern?pattern={HERE}:{quote(value)}").json()["files"] == []


def test_s39_results_and_time_are_bounded(one: RunningCluster) -> None:
    with one.settings(search_results_max=2):
        assert len(found(one, f"artifact?name=*&repos={BOTH}")) == 2
    with one.settings(search_seconds_max=0.001):
        answers = [ask(one, "artifact?name=*").status for _ in range(3)]
        assert set(answers) <= {200, 400}
    assert json.loads(one.admin.get("/artifactory/api/holdfast/settings/search_seconds_max").body)["value"] == 4


def test_only_who_may_read_may_search(one: RunningCluster) -> None:
    assert one.with_token("write").get("/artifactory/api/search/artifact?name=lib").status == 403
    assert one.first.client().get("/artifactory/api/search/artifact?name=lib").status == 401
