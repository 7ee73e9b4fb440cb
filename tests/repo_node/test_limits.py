"""Slow, idle and too many clients: cut by the configured limits, with nothing left behind and nobody else hurt."""

from __future__ import annotations

import hashlib
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from repo_node.config import HttpSection
from repo_node.web.body import RateFloor
from tests.postgres import TestServer
from tests.repo_node.http import RawConnection
from tests.repo_node.nodes import (
    PASSWORD,
    RunningCluster,
    basic,
    configure,
    errors_of,
    free_address,
    new_path,
    prepare,
    random_bytes,
    run_nodes,
    wait_until,
)

HEAD_SECONDS = 0.8
IDLE_SECONDS = 1.2
KEEPALIVE_SECONDS = 3.5
CONNECTIONS_MAX = 40
LARGE_BYTES = 24 << 20
RATE = 200_000


@pytest.fixture(scope="module")
def strict(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A node with limits that a test can wait for."""
    http = {
        "header_timeout_seconds": HEAD_SECONDS,
        "idle_timeout_seconds": IDLE_SECONDS,
        "keepalive_timeout_seconds": KEEPALIVE_SECONDS,
        "rate_bytes_per_second_min": RATE,
        "rate_window_seconds": 1.0,
        "connections_max": CONNECTIONS_MAX,
    }
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        with run_nodes([configure(dsn, tmp_path_factory.mktemp("strict"), http=http)]) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def large(strict: RunningCluster) -> tuple[str, str]:
    """The path of an artifact larger than what kernels buffer, and its sha256."""
    path, body = new_path(), random_bytes(LARGE_BYTES)
    assert strict.admin.put(path, body).status == 201
    return path, hashlib.sha256(body).hexdigest()


def cuts(cluster: RunningCluster, limit: str) -> float:
    return cluster.first.metric("holdfast_http_connections_cut_total", limit=limit)


def connections(cluster: RunningCluster) -> int:
    """Return how many connections the node's public port has."""
    port = f":{cluster.first.port:04X}"
    with open("/proc/net/tcp") as table:
        return sum(row.split()[1].endswith(port) and row.split()[3] == "01" for row in table)


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("sent", [b"", b"GET /artifactory/generic-local/a HT", b"GET /x HTTP/1.1\r\nHost: t\r\nX-A: b"])
def test_s17_a_client_that_does_not_finish_its_head_is_cut(strict: RunningCluster, sent: bytes) -> None:
    before = cuts(strict, "header_timeout_seconds")
    with strict.admin.raw() as raw:
        raw.send(sent)
        began = time.monotonic()
        assert raw.ends_within(10)
    assert time.monotonic() - began >= HEAD_SECONDS * 0.8
    assert cuts(strict, "header_timeout_seconds") == before + 1


def drip(raw: RawConnection, data: bytes, seconds: float) -> bool:
    """Send ``data`` a byte at a time, one every ``seconds``; say whether the other end broke off."""
    try:
        for byte in data:
            raw.send(bytes([byte]))
            time.sleep(seconds)
    except ConnectionError:
        return True
    return False


def test_s17_a_head_that_drips_is_cut_as_well(strict: RunningCluster) -> None:
    with strict.admin.raw() as raw:
        assert drip(raw, b"GET / HTTP/1.1\r\nHost: " + b"x" * 100, 0.05)


def test_the_head_of_a_second_request_has_the_same_time(strict: RunningCluster) -> None:
    with strict.admin.raw() as raw:
        raw.send_head("GET", "/artifactory/api/system/ping")
        assert raw.read_answer()[0] == 200
        assert drip(raw, b"GET / HTTP/1.1\r\nHost: " + b"x" * 100, 0.05)


def test_an_idle_connection_stays_for_the_keepalive_time(strict: RunningCluster) -> None:
    with strict.admin.raw() as raw:
        raw.send_head("GET", "/artifactory/api/system/ping")
        assert raw.read_answer()[0] == 200
        assert raw.is_silent(HEAD_SECONDS + 0.2)
        raw.send_head("GET", "/artifactory/api/system/ping")
        assert raw.read_answer()[0] == 200
        assert raw.ends_within(KEEPALIVE_SECONDS + 5)


@pytest.mark.parametrize("head", ["GET " + "/x" * 5000, "GET / HTTP/1.1\r\nX: " + "y" * 9000, "GET /\x00"])
def test_a_head_beyond_bounds_is_400(strict: RunningCluster, head: str) -> None:
    with strict.admin.raw() as raw:
        raw.send(head.encode() + b" HTTP/1.1\r\nHost: t\r\n\r\n")
        status, headers, body = raw.read_answer()
    assert status == 400
    assert headers["server"] == "Holdfast"
    assert b'"errors"' in body


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_s17_a_body_that_stops_coming_is_408_and_leaves_nothing(strict: RunningCluster, size: int) -> None:
    path, before = new_path(), set(strict.files())
    with strict.admin.raw() as raw:
        raw.send_head("PUT", path, f"Content-Length: {size}")
        raw.send(bytes(size // 2))
        status, headers, _ = raw.read_answer()
        assert (status, headers["connection"]) == (408, "close")
        assert raw.ends_within(10)
    wait_until(lambda: not set(strict.files()) - before)
    assert strict.admin.get(path).status == 404
    assert strict.first.metric("holdfast_uploads_in_flight") == 0


def test_s17_a_body_that_drips_is_cut_for_its_rate(strict: RunningCluster) -> None:
    path, before = new_path(), cuts(strict, "rate_bytes_per_second_min")
    with strict.admin.raw() as raw:
        raw.send_head("PUT", path, "Content-Length: 1000")
        drip(raw, b"x" * 40, 0.05)
        assert raw.read_head()[0] == 408
    assert cuts(strict, "rate_bytes_per_second_min") == before + 1
    assert strict.admin.get(path).status == 404


def test_a_body_that_comes_steadily_is_accepted_however_long_it_takes(strict: RunningCluster) -> None:
    path, piece = new_path(), bytes(RATE // 2)
    with strict.admin.raw() as raw:
        raw.send_head("PUT", path, f"Content-Length: {len(piece) * 20}")
        for _ in range(20):
            raw.send(piece)
            time.sleep(0.1)
        assert raw.read_head()[0] == 201


def test_only_the_time_spent_waiting_for_the_client_counts() -> None:
    http = HttpSection(listen=free_address(), rate_bytes_per_second_min=100, rate_window_seconds=10.0)
    floor = RateFloor(http)
    assert not floor.is_below(1, 4.9)
    assert not floor.is_below(1, 5.0)
    assert not floor.is_below(1488, 5.0)  # 1490 bytes in 14.9 seconds
    assert floor.is_below(999, 10.0)
    assert not floor.is_below(10**6, 1.0)
    unlimited = RateFloor(http.model_copy(update={"rate_bytes_per_second_min": 0}))
    assert not unlimited.is_below(0, 100.0)


# ---------------------------------------------------------------------- answers


def narrow(raw: RawConnection) -> None:
    """Let little wait on this side, so that the other side notices who does not read."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)


def test_a_client_that_does_not_read_a_large_answer_is_cut(strict: RunningCluster, large: tuple[str, str]) -> None:
    before = cuts(strict, "idle_timeout_seconds")
    with strict.admin.raw() as raw:
        narrow(raw)
        raw.send_head("GET", large[0])
        wait_until(lambda: cuts(strict, "idle_timeout_seconds") == before + 1, 10)
        assert raw.ends_within(10)
    assert strict.first.node.in_flight == 0


def test_s17_a_client_that_reads_no_answer_at_all_is_cut(strict: RunningCluster) -> None:
    path = new_path()
    strict.admin.put(path, random_bytes(1 << 20))
    before = cuts(strict, "idle_timeout_seconds")
    with strict.admin.raw() as raw:
        narrow(raw)
        for _ in range(30):
            raw.send_head("GET", path)
        wait_until(lambda: cuts(strict, "idle_timeout_seconds") == before + 1, 10)
    wait_until(lambda: connections(strict) == 0, 10)


def test_s17_a_client_that_reads_too_slowly_is_cut(strict: RunningCluster, large: tuple[str, str]) -> None:
    before = cuts(strict, "rate_bytes_per_second_min")
    with strict.admin.raw() as raw:
        narrow(raw)
        raw.send_head("GET", large[0])
        deadline = time.monotonic() + 15
        while cuts(strict, "rate_bytes_per_second_min") == before and time.monotonic() < deadline:
            raw.socket.recv(15_000)
            time.sleep(0.1)
    assert cuts(strict, "rate_bytes_per_second_min") == before + 1


def test_a_client_that_reads_steadily_gets_everything(strict: RunningCluster, large: tuple[str, str]) -> None:
    path, sha256 = large
    found, left = hashlib.sha256(), LARGE_BYTES
    with strict.admin.raw() as raw:
        narrow(raw)
        raw.send_head("GET", path)
        assert raw.read_head()[0] == 200
        while left:
            data = raw.read(min(left, 1 << 20))
            found.update(data)
            left -= len(data)
            time.sleep(0.12)
    assert found.hexdigest() == sha256


# ---------------------------------------------------------------------- numbers


def test_more_connections_than_allowed_are_closed_at_once(strict: RunningCluster) -> None:
    wait_until(lambda: connections(strict) == 0, 10)
    before = cuts(strict, "connections_max")
    with ExitStack() as stack:
        held = [stack.enter_context(strict.admin.raw()) for _ in range(CONNECTIONS_MAX)]
        for raw in held:
            raw.send_head("GET", "/artifactory/api/system/ping")
            assert raw.read_answer()[0] == 200
        extra = stack.enter_context(strict.admin.raw())
        assert extra.ends_within(10)
        assert cuts(strict, "connections_max") == before + 1
        held[0].close()
        wait_until(lambda: connections(strict) < CONNECTIONS_MAX)
        # Its limits are tight: a client that this machine holds up is cut before it has spoken.
        wait_until(lambda: is_served(strict))


def is_served(cluster: RunningCluster) -> bool:
    try:
        return cluster.admin.get("/artifactory/api/system/ping").status == 200
    except ConnectionError:
        return False


def test_s17_many_idle_and_slow_connections_do_not_hurt_others(one: RunningCluster) -> None:
    path, body = new_path(), random_bytes(100_000)
    assert one.admin.put(path, body).status == 201
    with ExitStack() as stack:
        for number in range(240):
            raw = stack.enter_context(one.admin.raw())
            if number % 3 == 1:
                raw.send(b"GET / HT")
            elif number % 3 == 2:
                raw.send_head("PUT", new_path(), "Content-Length: 1000")
                raw.send(b"half")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: one.admin.get(path), range(100)))
        assert all(answer.status == 200 and answer.body == body for answer in answers)
    wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 0)


def test_s17_thousands_of_connections_that_do_nothing_leave_others_without_an_error(one: RunningCluster) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    large, path, body = new_path(), new_path(), random_bytes(100_000)
    assert one.admin.put(large, random_bytes(6 << 20)).status == one.admin.put(path, body).status == 201
    slow = one.first.client(f"Bearer {one.token('read', 'write')}")
    with one.settings(uploads_in_flight_max=1000), ExitStack() as stack:
        for number in range(2360):
            raw = stack.enter_context(slow.raw())
            if number >= 2060:
                raw.send_head("PUT", new_path(), "Content-Length: 1000")
                raw.send(b"half")
            elif number >= 2000:
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.send_head("GET", large)
        wait_until(lambda: connections(one) >= 2360)
        with ThreadPoolExecutor(8) as pool:
            assert {one.admin.get(path).body == body for _ in range(3)} == {True}
            answers = list(pool.map(lambda _: one.admin.get(path), range(60)))
            stored = list(pool.map(lambda _: one.admin.put(new_path(), body).status, range(20)))
        assert all(answer.status == 200 and answer.body == body for answer in answers) and set(stored) == {201}
    wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_s17_more_uploads_than_allowed_are_503_before_their_body(one: RunningCluster) -> None:
    with one.settings(uploads_in_flight_max=1), one.admin.raw() as first, one.admin.raw() as second:
        first.send_head("PUT", new_path(), "Content-Length: 10")
        wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 1)
        second.send_head("PUT", new_path(), "Expect: 100-continue", "Content-Length: 10")
        status, headers = second.read_head()
        assert (status, headers["retry-after"]) == (503, "2")
        first.send(bytes(10))
        assert first.read_head()[0] == 201


def test_s17_more_requests_of_one_user_than_allowed_are_429_and_other_users_go_on(one: RunningCluster) -> None:
    path = new_path()
    other = one.with_token("read", "write")
    one.sql("INSERT INTO users (name, password_hash) SELECT 'second', password_hash FROM users WHERE name = 'admin'")
    second = one.first.client(basic("second", PASSWORD))
    with one.settings(requests_per_user_max=2), one.admin.raw() as first:
        first.send_head("PUT", path, "Content-Length: 10")
        with one.admin.raw() as waiting:
            waiting.send_head("PUT", new_path(), "Content-Length: 10")
            wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 2)
            refused = one.admin.get(path)
            assert errors_of(refused)[0] == 429 and refused.headers["Retry-After"] == "2"
            assert other.get(path).status == 429, "a token is its user"
            assert second.get("/artifactory/api/repositories").status != 429
            assert one.first.client().get("/artifactory/api/system/ping").status == 200
        wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 1)
        first.send(bytes(10))
        assert first.read_head()[0] == 201
