"""Clients of a run notice answers that no node may give."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.chaos import client as client_module
from tests.chaos.acts import Deed, Outcome
from tests.chaos.client import Client
from tests.chaos.files import Files
from tests.chaos.ledger import Item, Ledger, digests
from tests.chaos.places import BUILDER
from tests.chaos.reading import Reading, items_in, query

BODY = b"the right bytes"
SHA256 = hashlib.sha256(BODY).hexdigest()
BY_NODE = {"X-Request-Id": "given"}
OPEN_PATH, CLOSED_PATH = "generic-local/worker-0/open/0/1.bin", "generic-local/worker-0/0/2.bin"
TAGGED = Item(SHA256, frozenset({("tag", "0-0")}))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0)


def known() -> Ledger:
    ledger = Ledger()
    for path in (OPEN_PATH, CLOSED_PATH):
        operation = ledger.begin(Deed(("deploy",), path), {path: TAGGED}, 0)
        operation.end(Outcome.ACKNOWLEDGED, 1)
    return ledger


async def ask(
    answer: Callable[[], web.Response], does: Callable[[Client], Awaitable[object]], ledger: Ledger, name: str = "admin"
) -> list[str]:
    """Ask a server that gives ``answer`` to everything; return which invariants that broke."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer()

    application = web.Application()
    application.router.add_route("*", "/artifactory/{path:.*}", handle)
    async with TestServer(application) as server:
        client = Client(str(server.make_url("")).rstrip("/"), ledger, "token", name=name)
        async with client:
            await does(client)
    return [one.invariant for one in ledger.violations]


@pytest.mark.parametrize(
    ("answer", "invariants"),
    [
        (lambda: web.Response(body=BODY, headers={**BY_NODE, "X-Checksum-Sha256": SHA256}), []),
        (lambda: web.Response(body=b"others", headers={**BY_NODE, "X-Checksum-Sha256": SHA256}), ["I2", "I3"]),
        (lambda: web.Response(body=BODY, headers=BY_NODE), ["I2"]),
        (lambda: web.Response(status=404, headers=BY_NODE), ["I1"]),
        (lambda: web.Response(status=503, headers={**BY_NODE, "Retry-After": "2"}), []),
        (lambda: web.Response(status=503, headers=BY_NODE), ["I14"]),
        (lambda: web.Response(status=503), []),  # the load balancer's own
        (lambda: web.Response(status=500, headers=BY_NODE), ["I14"]),
    ],
)
async def test_reader_notices_wrong_bytes_and_dishonest_answers(
    answer: Callable[[], web.Response], invariants: list[str]
) -> None:
    assert await ask(answer, lambda client: client.read(OPEN_PATH), known()) == invariants


async def test_reader_notices_that_it_is_given_what_it_may_not_read() -> None:
    def answer() -> web.Response:
        return web.Response(body=BODY, headers={"X-Checksum-Sha256": SHA256})

    assert await ask(answer, lambda client: client.read(CLOSED_PATH, refused=True), known()) == ["I10"]


@pytest.mark.parametrize(
    ("answer", "invariants"),
    [
        (lambda: web.json_response({"properties": {"tag": ["0-0"]}}), []),
        (lambda: web.json_response({"properties": {"tag": ["0-1"]}}), ["I10"]),
        (lambda: web.json_response({"errors": [{"message": "No properties could be found."}]}, status=404), ["I10"]),
        (lambda: web.json_response({"errors": [{"message": "Unable to find item"}]}, status=404), ["I1"]),
        (lambda: web.Response(text='{"properties": {"tag"'), ["I2"]),
        (lambda: web.Response(status=400), ["I14"]),
        (lambda: web.Response(status=502), []),
    ],
)
async def test_reader_notices_wrong_properties(answer: Callable[[], web.Response], invariants: list[str]) -> None:
    assert await ask(answer, lambda client: client.read_properties(OPEN_PATH, OPEN_PATH), known()) == invariants


def found(*paths: str, tag: str = "0-0") -> web.Response:
    """Answer AQL with these."""
    places = [(path.split("/", 1)[0], *path.split("/", 1)[1].rsplit("/", 1)) for path in paths]
    properties = [{"key": "tag", "value": tag}]
    return web.json_response(
        {
            "results": [
                {"repo": repo, "path": path, "name": name, "sha256": SHA256, "properties": properties}
                for repo, path, name in places
            ]
        }
    )


class First(random.Random):
    """Takes the first of what there is to choose from: an unsorted query for the first tag, without limit."""

    def random(self) -> float:
        return 0.9

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return seq[0]

    def randrange(self, *args: int) -> int:  # type: ignore[override]
        return 0


@pytest.mark.parametrize(
    ("name", "answer", "invariants"),
    [
        ("admin", lambda: found(CLOSED_PATH, OPEN_PATH), []),
        ("admin", lambda: found(OPEN_PATH), ["I10"]),
        ("admin", lambda: found(CLOSED_PATH, OPEN_PATH, "generic-local/worker-0/0/never.bin"), ["I10"]),
        ("admin", lambda: found(CLOSED_PATH, OPEN_PATH, tag="0-1"), ["I10", "I10"]),
        (BUILDER, lambda: found(OPEN_PATH), []),
        (BUILDER, lambda: found(CLOSED_PATH, OPEN_PATH), ["I10"]),
        (BUILDER, lambda: found(), ["I10"]),
        (BUILDER, lambda: web.Response(status=503, headers=BY_NODE), ["I14"]),
    ],
)
async def test_searcher_notices_phantoms_gaps_and_what_its_user_may_not_see(
    name: str, answer: Callable[[], web.Response], invariants: list[str]
) -> None:
    ledger = known()

    async def search(client: Client) -> None:
        await Reading(client, client, 0, First(), [])._by_query(client)

    assert await ask(answer, search, ledger, name) == invariants


async def test_searcher_notices_what_is_out_of_order() -> None:
    chance = First()
    chance.random = lambda: 0.1  # type: ignore[method-assign]

    async def search(client: Client) -> None:
        await Reading(client, client, 0, chance, [])._by_query(client)

    assert await ask(lambda: found(CLOSED_PATH, OPEN_PATH), search, known()) == []
    assert await ask(lambda: found(OPEN_PATH, CLOSED_PATH), search, known()) == ["I10"]


def test_query_and_its_answer_are_in_artifactorys_words() -> None:
    text = query("generic-all", {"@tag": "0-0"}, is_sorted=True, limit=3, offset=6)
    assert text == (
        'items.find({"repo": "generic-all", "@tag": "0-0"}).include("repo", "path", "name", "sha256", "property")'
        '.sort({"$asc": ["repo", "path", "name"]}).offset(6).limit(3)'
    )
    assert items_in({"results": [{"repo": "r", "path": "a/b", "name": "c", "sha256": "d"}]}) == {"r/a/b/c": Item("d")}


async def test_writer_that_gets_no_answer_keeps_both_versions_possible_and_writes_there_no_more() -> None:
    ledger = Ledger()
    async with Client("http://127.0.0.1:9", ledger) as client:
        await Files(client, client, 0, First(), []).put(CLOSED_PATH, BODY)
    assert digests(ledger.paths[CLOSED_PATH].possible) == {None, SHA256}
    assert ledger.paths[CLOSED_PATH].retired
    assert [act.outcome for act in ledger.acts.values()] == [Outcome.UNKNOWN, Outcome.UNKNOWN]
    assert ledger.violations == []


async def test_refused_write_leaves_the_old_version_and_its_path_in_use() -> None:
    ledger = known()

    async def trespass(client: Client) -> None:
        files = Files(client, client, 0, First(), [])
        files._paths = [CLOSED_PATH]
        await files.trespass()

    assert await ask(lambda: web.Response(status=403), trespass, ledger, BUILDER) == []
    assert ledger.paths[CLOSED_PATH].certain == TAGGED and not ledger.paths[CLOSED_PATH].retired
    assert [act.outcome for act in ledger.acts.values()] == [Outcome.REFUSED]
    assert await ask(lambda: web.Response(status=201), trespass, ledger, BUILDER) == ["I14", "I14"]
