"""Clients of a run notice answers that no node may give."""

from __future__ import annotations

import hashlib

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.chaos.ledger import Ledger, Outcome
from tests.chaos.load import Load, Worker, open_session, read

BODY = b"the right bytes"
SHA256 = hashlib.sha256(BODY).hexdigest()
BY_NODE = {"X-Request-Id": "given"}


async def ask(answer: web.Response) -> Ledger:
    """Download what was acknowledged as ``BODY`` from a server that answers ``answer``."""
    ledger = Ledger()
    ledger.begin("repo/path", "put", SHA256, 0).end(Outcome.ACKNOWLEDGED, 1)

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer

    application = web.Application()
    application.router.add_get("/artifactory/{path:.*}", handle)
    async with TestServer(application) as server, open_session() as session:
        await read(session, str(server.make_url("")).rstrip("/"), ledger, "repo/path")
    return ledger


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
async def test_reader_notices_wrong_bytes_and_dishonest_answers(answer: object, invariants: list[str]) -> None:
    assert callable(answer)
    ledger = await ask(answer())
    assert [one.invariant for one in ledger.violations] == invariants


async def test_writer_that_gets_no_answer_keeps_both_versions_possible_and_writes_there_no_more() -> None:
    ledger = Ledger()
    load = Load("http://127.0.0.1:9", ledger, 1, workers=1, pause_seconds=0)
    worker = Worker(load, 0, 1, 0)
    async with open_session() as load.session:
        await worker._put("repo/path", BODY)
    assert ledger.paths["repo/path"].possible == {None, SHA256}
    assert ledger.paths["repo/path"].retired
    assert ledger.violations == []
