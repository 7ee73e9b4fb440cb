"""S5: whatever a token asks for, by whatever way, is allowed by its scope and by its user's rights, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import RunningCluster, remove_repositories
from tests.repo_node.people import client_of, grant, new_user

API = "/artifactory/api"
ALL = frozenset({"read", "write", "annotate", "delete"})
SCOPES = {
    "whole": ((), ALL),
    "read": (("read",), frozenset({"read"})),
    "write": (("write",), frozenset({"write", "annotate"})),
    "read, write": (("read", "write"), frozenset({"read", "write", "annotate"})),
    "delete": (("delete",), frozenset({"delete"})),
    "metrics": (("metrics",), frozenset()),
}
PATHS = ("f", "m", "gone", "over", "d/in")
CONTENT = {"mine": b"my own content", "theirs": b"what only they may read"}


@dataclass(frozen=True)
class Ask:
    """A request, ``needs`` of it at the repository that it is for and ``needs_mine`` at the one of the user's own."""

    send: Callable[[Client, str, str], Answer]
    needs: frozenset[str]
    needs_mine: frozenset[str] = frozenset()


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("member", b"m")
    return made.getvalue()


def known(who: Client, path: str, content: bytes) -> Answer:
    sha256 = hashlib.sha256(content).hexdigest()
    return who.put(path, b"", X_Checksum_Deploy="true", X_Checksum_Sha256=sha256)


def post(who: Client, path: str) -> Answer:
    return who.request("POST", f"{API}/{path}")


R, W, A, D = (frozenset({one}) for one in ("read", "write", "annotate", "delete"))
ASKS = {
    "download": Ask(lambda who, key, _: who.get(f"/artifactory/{key}/f"), R),
    "head": Ask(lambda who, key, _: who.head(f"/artifactory/{key}/f"), R),
    "range": Ask(lambda who, key, _: who.get(f"/artifactory/{key}/f", Range="bytes=0-1"), R),
    "upload": Ask(lambda who, key, new: who.put(f"/artifactory/{key}/{new}", b"x"), W),
    "upload with properties": Ask(lambda who, key, new: who.put(f"/artifactory/{key}/{new};k=v", b"x"), W | A),
    "overwrite": Ask(lambda who, key, new: who.put(f"/artifactory/{key}/over", new.encode()), W | D),
    "make a folder": Ask(lambda who, key, new: who.put(f"/artifactory/{key}/{new}/"), W),
    "unpack": Ask(
        lambda who, key, new: who.put(f"/artifactory/{key}/{new}/a.zip", zipped(), X_Explode_Archive="true"), W
    ),
    "delete": Ask(lambda who, key, _: who.delete(f"/artifactory/{key}/gone"), D),
    "info": Ask(lambda who, key, _: who.get(f"{API}/storage/{key}/f"), R),
    "list": Ask(lambda who, key, _: who.get(f"{API}/storage/{key}?list&deep=1"), R),
    "read properties": Ask(lambda who, key, _: who.get(f"{API}/storage/{key}/f?properties"), R),
    "set properties": Ask(lambda who, key, new: who.request("PUT", f"{API}/storage/{key}/f?properties=k={new}"), A),
    "drop properties": Ask(lambda who, key, _: who.request("DELETE", f"{API}/storage/{key}/f?properties=none"), A),
    "change metadata": Ask(
        lambda who, key, new: who.request("PATCH", f"{API}/metadata/{key}/f", b'{"props": {"k": "v"}}'), A
    ),
    "archive": Ask(lambda who, key, _: who.get(f"{API}/archive/download/{key}/d?archiveType=zip"), R),
    "pattern": Ask(lambda who, key, _: who.get(f"{API}/search/pattern?pattern={key}:*"), R),
    "copy from": Ask(lambda who, key, new: post(who, f"copy/{key}/f?to=/matrix-mine/{new}"), R, W),
    "copy to": Ask(lambda who, key, new: post(who, f"copy/matrix-mine/f?to=/{key}/{new}"), W, R),
    "move from": Ask(lambda who, key, new: post(who, f"move/{key}/m?to=/matrix-mine/{new}"), R | D, W),
    "move to": Ask(lambda who, key, new: post(who, f"move/matrix-mine/m?to=/{key}/{new}"), W, R | D),
}


def fill(one: RunningCluster, name: str, *paths: str) -> None:
    for path in paths:
        assert one.admin.put(f"/artifactory/matrix-{name}/{path};tag=matrix", CONTENT[name]).status == 201


@pytest.fixture(scope="module")
def user(one: RunningCluster) -> Iterator[str]:
    """Somebody who has every right in one repository, and none in another like it."""
    for name in CONTENT:
        assert one.admin.put_json(f"{API}/repositories/matrix-{name}", {"rclass": "local"}).status == 200
        fill(one, name, *PATHS)
    name = new_user(one)
    grant(one, name, sorted(ALL), ["matrix-mine"])
    yield name
    remove_repositories(one.admin, "matrix-")


@pytest.fixture
def who(one: RunningCluster, user: str, scopes: str) -> Client:
    """A client with a token of the user's."""
    return client_of(one, user, *SCOPES[scopes][0])


@pytest.mark.parametrize("scopes", SCOPES)
def test_s5_every_verb_is_allowed_by_scope_and_rights_or_not_at_all(
    one: RunningCluster, who: Client, scopes: str
) -> None:
    may = SCOPES[scopes][1]
    for asked, ask in ASKS.items():
        for name in ("theirs", "mine"):
            answer = ask.send(who, f"matrix-{name}", uuid4().hex)
            allowed = (name == "mine" or not ask.needs) and may >= ask.needs | ask.needs_mine
            assert (answer.status < 300) is allowed, (asked, name, answer)
            assert allowed or answer.status == 403, (asked, name, answer)
            assert name == "mine" or CONTENT["theirs"] not in answer.body
            if allowed and D <= ask.needs | ask.needs_mine:
                fill(one, "mine", "m", "gone")
    for path in PATHS:
        assert one.admin.get(f"/artifactory/matrix-theirs/{path}").body == CONTENT["theirs"]


@pytest.mark.parametrize("scopes", SCOPES)
def test_s5_searches_and_queries_find_what_scope_and_rights_allow(
    one: RunningCluster, who: Client, scopes: str
) -> None:
    may = "read" in SCOPES[scopes][1]
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    asked = [
        lambda: who.get(f"{API}/search/prop?tag=matrix&repos=matrix-mine,matrix-theirs"),
        lambda: who.get(f"{API}/search/artifact?name=f&repos=matrix-mine,matrix-theirs"),
        *[lambda sha256=sha256: who.get(f"{API}/search/checksum?sha256={sha256}") for sha256 in digests.values()],
        lambda: who.request(
            "POST",
            f"{API}/search/aql",
            b'items.find({"repo": {"$match": "matrix-*"}}).include("repo", "path", "name", "sha256")',
        ),
    ]
    found = b""
    for ask in asked:
        answer = ask()
        assert (answer.status == 200) is may and (may or answer.status == 403)
        found += answer.body
    assert (b"matrix-mine" in found) is may
    assert b"matrix-theirs" not in found and (not may or digests["mine"] in found.decode())
    assert digests["theirs"] not in json.dumps(found.decode())


@pytest.mark.parametrize("scopes", SCOPES)
def test_s5_and_s6_a_foreign_digest_is_deployed_by_nobody(one: RunningCluster, who: Client, scopes: str) -> None:
    may = SCOPES[scopes][1]
    for name, content in CONTENT.items():
        status = known(who, f"/artifactory/matrix-mine/{uuid4().hex}", content).status
        wanted = 403 if "write" not in may else 201 if name == "mine" and "read" in may else 404
        assert status == wanted, (name, status)
