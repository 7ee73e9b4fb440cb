"""One process of the load against a small server: bytes verified, ways chosen, arrivals counted from their time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import xxhash
from aiohttp import web

from benchmarks.cells import Cell, Operation, Way
from benchmarks.connection import Connection, ConnectionBroken, Head, parse_chunk_size, parse_head
from benchmarks.content import Content
from benchmarks.dialects import PlainPut, RegistryPush, Wrong, target_of
from benchmarks.generator import HOT_OBJECTS, Generator, Stored, Target, arrivals

SMALL = 4 << 10
PUT, GET = Cell(Operation.PUT, SMALL, 3), Cell(Operation.GET, SMALL, 3)


class Store:
    """What a server was sent, and what it was asked for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.declared: list[str] = []

    async def put(self, request: web.Request) -> web.Response:
        self.bodies[request.path] = await request.read()
        self.declared += request.headers.getall("X-Checksum-Sha256", [])
        return web.Response(status=201)

    async def get(self, request: web.Request) -> web.Response:
        self.asked[request.path] += 1
        if "If-None-Match" in request.headers:
            return web.Response(status=304)
        return web.Response(body=self.bodies[request.path])

    async def delete(self, request: web.Request) -> web.Response:
        del self.bodies[request.path]
        return web.Response(status=204)

    async def chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for size in (1, 70_000, 3):
            await response.write(b"x" * size)
        await response.write_eof()
        return response

    async def begin(self, _: web.Request) -> web.Response:
        return web.Response(status=202, headers={"Location": "http://any/v2/r/blobs/uploads/1?state=a"})

    async def patch(self, request: web.Request) -> web.Response:
        self.bodies["pushed"] = await request.read()
        return web.Response(status=202, headers={"Location": "/v2/r/blobs/uploads/1?state=b"})

    async def end(self, request: web.Request) -> web.Response:
        assert request.query["state"] == "b"
        self.bodies[f"/v2/r/blobs/{request.query['digest']}"] = self.bodies["pushed"]
        return web.Response(status=201)


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[Target]:
    app = web.Application()
    app.router.add_get("/chunked", store.chunked)
    app.router.add_post("/v2/r/blobs/uploads/", store.begin)
    app.router.add_patch("/v2/r/blobs/uploads/1", store.patch)
    app.router.add_put("/v2/r/blobs/uploads/1", store.end)
    app.router.add_put("/{path:.*}", store.put)
    app.router.add_get("/{path:.*}", store.get)
    app.router.add_delete("/{path:.*}", store.delete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Target(f"http://127.0.0.1:{port}", "", dialect=PlainPut("/store"))
    finally:
        await runner.cleanup()


async def test_what_was_uploaded_is_downloaded_and_verified() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        put = await generator.run(PUT, 0.1)
        assert len(put.latencies) == len(store.bodies) >= 3
        assert len(set(store.bodies.values())) == len(store.bodies)
        got = await generator.run(GET, 0.1)
        assert got.latencies and not got.errors
        known = await generator.run(Cell(Operation.NOT_MODIFIED, SMALL, 1), 0)
        assert known.latencies and not known.errors
        head = await generator.run(Cell(Operation.HEAD, SMALL, 1), 0)
        assert head.latencies and not head.errors


async def test_other_bytes_than_were_uploaded_are_an_error() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        await generator.run(PUT, 0)
        store.bodies = {path: b"y" * SMALL for path in store.bodies}
        got = await generator.run(GET, 0)
        assert not got.latencies
        assert list(got.errors) == ["Wrong: GET brought other bytes than were uploaded"]


async def test_each_object_is_asked_for_once_before_any_comes_again() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        body = bytes(SMALL)
        store.bodies = {f"/store/{number}": body for number in range(20)}
        digest = xxhash.xxh3_128_digest(body)
        generator.adopt([Stored(path, SMALL, digest) for path in store.bodies])
        await generator.run(Cell(Operation.GET, SMALL, 20), 0)
        assert set(store.asked.values()) == {1}


async def test_known_content_is_deployed_by_its_digest_to_a_path_of_its_own() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        generator.adopt([Stored("/store/a", SMALL, b"", sha256="ab" * 32)])
        outcome = await generator.run(Cell(Operation.CHECKSUM, SMALL, 3), 0)
        assert (len(outcome.latencies), outcome.errors) == (3, Counter())
        assert store.declared == ["ab" * 32] * 3 and len(store.bodies) == 3


async def test_everything_is_deleted_once() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        store.bodies = {f"/store/{number}": b"" for number in range(20)}
        generator.adopt([Stored(path, SMALL, b"") for path in store.bodies])
        outcome = await generator.run(Cell(Operation.DELETE, SMALL, 3), 10)
        assert (len(outcome.latencies), outcome.errors, store.bodies) == (20, Counter(), {})


async def test_open_loop_lets_requests_arrive_at_its_rate() -> None:
    store = Store()
    async with serving(store) as target:
        generator = Generator(0, 1, target)
        await generator.run(PUT, 0)
        outcome = await generator.run(Cell(Operation.GET, SMALL, 4, Way.OPEN), 0.5, 100.0)
        assert 10 < len(outcome.latencies) < 120
        assert not outcome.errors


def test_ways_choose_among_what_is_stored() -> None:
    target = Target("http://h:1", "", ("http://a:1", "http://b:2", "http://c:3"))
    generator = Generator(0, 2, target)
    generator.adopt([Stored(f"/{n}", SMALL, b"", nodes=(n % 3, (n + 1) % 3)) for n in range(900)])

    def chosen(way: Way, node: int | None) -> list[Stored]:
        return generator._chosen(Cell(Operation.GET, SMALL, 1, way), node)

    assert len(chosen(Way.SPREAD, None)) == 900
    assert len(chosen(Way.HOT, None)) == HOT_OBJECTS // 2
    assert all(1 in one.nodes for one in chosen(Way.OWN, 1))
    assert all(1 not in one.nodes for one in chosen(Way.PEER, 1))
    assert len(chosen(Way.OWN, 1)) + len(chosen(Way.PEER, 1)) == 900


def test_arrivals_come_in_order_and_end() -> None:
    times = list(arrivals(1000.0, 1.0))
    assert times == sorted(times)
    assert 800 < len(times) < 1200
    assert times[-1] < 1.0


async def test_push_to_a_registry_is_read_by_its_digest() -> None:
    store = Store()
    async with serving(store) as target:
        port = int(target.url.rpartition(":")[2])
        async with Connection("127.0.0.1", port, "") as connection:
            body = list(Content().blocks(SMALL))
            path = await RegistryPush("r").put(connection, "name", SMALL, body)
            assert store.bodies[path] == b"".join(body)
            got = bytearray()
            await connection.ask("GET", path, got.extend)
            assert bytes(got) == b"".join(body)


async def test_chunks_are_put_together() -> None:
    async with serving(Store()) as target:
        got = bytearray()
        async with Connection("127.0.0.1", int(target.url.rpartition(":")[2]), "") as connection:
            for _ in range(2):
                assert (await connection.ask("GET", "/chunked", got.extend)).status == 200
        assert bytes(got) == b"x" * 2 * 70_004


async def test_wrong_status_is_an_error() -> None:
    async with serving(Store()) as target, Connection("127.0.0.1", int(target.url.rpartition(":")[2]), "") as one:
        with pytest.raises(Wrong, match="answered 405"):
            await RegistryPush("store/x").put(one, "name", 0, ())


def test_head_is_parsed() -> None:
    head = parse_head(b"HTTP/1.1 202 Accepted\r\nLocation: http://h/v2/x?a=b\r\nContent-Length: 7")
    assert head == Head(202, {"location": "http://h/v2/x?a=b", "content-length": "7"})
    assert head.length == 7
    assert target_of(head) == "/v2/x?a=b"


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(ConnectionBroken):
        parse_head(b"SSH-2.0-x")
    with pytest.raises(ConnectionBroken):
        parse_chunk_size(b"zz")
    with pytest.raises(ConnectionBroken):
        _ = Head(200, {}).length
