"""S36: whatever clients say, Postgres is asked in the same words; what they say is bound."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.repo_node.http import Client
from tests.repo_node.nodes import RunningCluster, basic
from tests.repo_node.statements import statements_sent

API = "/artifactory/api"
HARMLESS = ["plain", "folder/name", "with*star", "with?mark", "two words"]
CORPUS = [
    "' OR '1'='1",
    "'; DROP TABLE users; --",
    "1; SELECT pg_sleep(5)--",
    "' UNION SELECT name, password_hash FROM users --",
    "\" OR \"\"=\"",
    "$$; DELETE FROM events; $$",
    "$1",
    "%' AND 1=(SELECT 1/0) --",
    "_%_%",
    "E'\\''; TRUNCATE events; --",
    "){} UNION ALL SELECT NULL#",
    "1' ORDER BY 99-- -",
    "x') OR (SELECT version()) LIKE ('P%",
    "/*!50000 OR 1=1*/",
    "\u02bc OR 1=1",
]  # fmt: skip


def ask_everything(who: Client, text: str) -> None:
    """Say ``text`` wherever a client can say something that Postgres hears of."""
    one = quote(text.replace("/", "").replace("\\", ""), safe="")
    said = quote(text, safe="")
    searches = [
        f"artifact?name={said}&repos={said}",
        f"prop?{said}={said}&repos=generic-local",
        f"prop?k={said}",
        f"checksum?sha256={said}",
        f"pattern?pattern=generic-local:{one}",
        f"gavc?g={said}&a={said}&v={said}&c={said}",
        f"creation?from={said}",
        f"usage?notUsedSince={said}&repos={said}",
        f"versions?g={said}&a={said}",
        f"latestVersion?g={said}&a={said}&repos=generic-local",
    ]
    gets = [
        *[f"{API}/search/{search}" for search in searches],
        f"/artifactory/generic-local/{one}/x?properties={said}",
        f"/artifactory/{one}/x",
        f"{API}/storage/generic-local/{one}?properties={said}",
        f"{API}/storage/generic-local/{one}?list&deep=1&depth={said}",
        f"{API}/versions/generic-local/{one}?listFiles={said}",
        f"{API}/repositories?type={said}&packageType={said}",
        f"{API}/security/users/{one}",
        f"{API}/security/groups/{one}",
        f"{API}/security/permissions/{one}",
        f"{API}/holdfast/audit?principal={said}&kind={said}",
        f"{API}/holdfast/audit?path={said}&repository={said}",
        f"{API}/holdfast/settings/{one}",
        f"{API}/holdfast/trash?repository={said}&path={said}",
    ]
    for path in gets:
        assert who.get(path, X_Request_Id=f"corpus-{said[:3]}").status < 500, path
    quoted = json.dumps(text)
    for query in (
        f'items.find({{"name": {quoted}, "@k": {quoted}}})',
        f'items.find({{"name": {{"$match": {quoted}}}}}).sort({{"$asc": ["name"]}}).limit(3)',
        f"items.find({quoted})",
        f'items.find({{{quoted}: "x"}}).include({quoted})',
    ):
        assert who.request("POST", f"{API}/search/aql", query.encode()).status < 500, query
    assert who.put(f"/artifactory/generic-local/corpus/{one};k={said};{said}=v", b"x").status < 500
    assert who.request("PATCH", f"{API}/metadata/generic-local/corpus/{one}", b'{"props": {%s: %s}}' % (
        quoted.encode(), quoted.encode())).status < 500  # fmt: skip
    assert who.request("POST", f"{API}/copy/generic-local/corpus/{one}?to=/generic-local/corpus/{one}-2").status < 500
    assert who.post_json(f"{API}/security/unlockUsers", [text]).status < 500
    assert Client(who.host, who.port, basic(text.replace("\0", ""), text)).get(f"{API}/repositories").status == 401


@pytest.fixture(scope="module")
def known(one: RunningCluster) -> set[str]:
    """What Postgres is asked when harmless things are said, and between requests."""
    with statements_sent() as sent:
        for text in HARMLESS:
            ask_everything(one.admin, text)
        one.admin.delete("/artifactory/generic-local/corpus")
    assert len({found.name for found in sent}) > 20
    return {found.sql for found in sent}


@pytest.mark.parametrize("text", CORPUS)
def test_s36_what_a_client_says_changes_no_statement(one: RunningCluster, known: set[str], text: str) -> None:
    with statements_sent() as sent:
        ask_everything(one.admin, text)
    mine = {found.name: found.sql for found in sent if found.request != "-"}
    assert len(mine) > 10
    assert [name for name, sql in mine.items() if sql not in known] == []
    assert not [found.name for found in sent if len(text) > 4 and text in found.sql]
    assert one.sql("SELECT count(*) > 0 AS there FROM users")[0]["there"]
