"""Long bodies straight from the socket: the same bytes, the connection of use afterwards, no trace of one that broke."""

from __future__ import annotations

import gc
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from sharding.room import Room
from tests.repo_node.http import Client
from tests.repo_node.nodes import PASSWORD, RunningCluster, basic, new_path, random_bytes
from tests.repo_node.test_deploy import nothing_stored

BLOCK = 1 << 20


def put_head(path: str, length: int, *more: str) -> bytes:
    lines = [f"PUT {path} HTTP/1.1", "Host: x", f"Authorization: {basic('admin', PASSWORD)}", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def answers(connection: socket.socket, count: int) -> bytes:
    """Return what comes until ``count`` status lines have come, and a little later."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
        piece = connection.recv(1 << 16)
        assert piece, received
        received += piece
    return received


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7, 9 * BLOCK])
@pytest.mark.parametrize("first", [0, 1, 200_000, BLOCK + 3])
def test_bytes_are_stored_however_they_arrive_and_the_connection_is_of_use_afterwards(
    one: RunningCluster, size: int, first: int
) -> None:
    paths, bodies = [new_path() for _ in range(3)], [random_bytes(size) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", one.first.port), timeout=30) as connection:
        for path, body in zip(paths, bodies, strict=True):
            connection.sendall(put_head(path, size) + body[:first])
            time.sleep(0.01)
            connection.sendall(body[first:])
            assert answers(connection, 1).startswith(b"HTTP/1.1 201")
    assert [one.admin.get(path).body for path in paths] == bodies


def test_a_request_behind_a_long_body_is_answered(one: RunningCluster) -> None:
    long, short = new_path(), new_path()
    body = random_bytes(5 * BLOCK + 1)
    with socket.create_connection(("127.0.0.1", one.first.port), timeout=30) as connection:
        connection.sendall(put_head(long, len(body)) + body + put_head(short, 5) + b"short")
        assert answers(connection, 2).count(b"HTTP/1.1 201") == 2
    assert (one.admin.get(long).body, one.admin.get(short).body) == (body, b"short")


@pytest.mark.parametrize("sent", [BLOCK // 2, BLOCK + 5, 3 * BLOCK])
def test_a_client_that_goes_in_mid_body_leaves_nothing(one: RunningCluster, sent: int) -> None:
    path, body = new_path(), random_bytes(8 * BLOCK)
    address = ("127.0.0.1", one.first.port)
    with nothing_stored(one, path), socket.create_connection(address, timeout=30) as connection:
        connection.sendall(put_head(path, len(body)) + body[:sent])
        time.sleep(0.1)
        connection.close()


def test_a_long_upload_that_is_refused_gets_its_answer(one: RunningCluster) -> None:
    path, body = new_path(), random_bytes(6 * BLOCK)
    with nothing_stored(one, path):
        assert one.admin.put(path, body, X_Checksum_Sha256="0" * 64).status == 409
        assert one.admin.put(path, body, Expect="100-continue", X_Checksum_Md5="0" * 32).status == 409


def test_transfers_that_share_one_block_of_memory_all_come_to_their_end(one: RunningCluster) -> None:
    bodies = {new_path(): random_bytes(3 * BLOCK + number) for number in range(12)}
    failures: list[object] = []

    def transfer(client: Client, path: str, body: bytes) -> None:
        if client.put(path, body).status != 201 or client.get(path).body != body:
            failures.append(path)

    with one.settings(transfer_blocks_max=1):
        threads = [threading.Thread(target=transfer, args=(one.admin, path, body)) for path, body in bodies.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failures == []


def test_a_client_that_takes_its_time_holds_up_nobody_for_long(one: RunningCluster) -> None:
    slow, body = new_path(), random_bytes(2 * BLOCK)
    impatient = one.settings(transfer_blocks_max=1, transfer_wait_seconds=0.05)
    with impatient, socket.create_connection(("127.0.0.1", one.first.port), timeout=30) as connection:
        connection.sendall(put_head(slow, len(body)) + body[: BLOCK + 10])
        for _ in range(3):
            path = new_path()
            assert one.admin.put(path, body).status == 201
            assert one.admin.get(path).body == body
        connection.sendall(body[BLOCK + 10 :])
        assert answers(connection, 1).startswith(b"HTTP/1.1 201")
    assert one.admin.get(slow).body == body


@pytest.mark.parametrize("length", [BLOCK, 3 * BLOCK])
def test_an_upload_has_one_block_of_memory_whatever_its_length(one: RunningCluster, length: int) -> None:
    count = 20
    bodies = {new_path(): random_bytes(length) for _ in range(count)}
    with one.settings(transfer_blocks_max=1, transfer_wait_seconds=0.05), ExitStack() as stack:
        connections = []
        for path, body in bodies.items():
            connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", one.first.port), timeout=30)))
            connections[-1].sendall(put_head(path, length) + body[:-1])
        seen = [rooms_in_use() for _ in range(20) if time.sleep(0.05) is None]
        assert max(seen) == seen[-1] == count
        for connection, body in zip(connections, bodies.values(), strict=True):
            connection.sendall(body[-1:])
            assert answers(connection, 1).startswith(b"HTTP/1.1 201")
    assert rooms_in_use() == 0
    assert all(one.admin.get(path).body == body for path, body in bodies.items())


def rooms_in_use() -> int:
    return sum(type(found) is Room for found in gc.get_objects())
