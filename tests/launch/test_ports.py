"""Ports: what counts as free, and the claim on the front port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from repo_node.launch import ports
from repo_node.launch.errors import PortTaken


@pytest.fixture
def port() -> int:
    return ports.find_free_port()


@pytest.fixture
def listener(port: int) -> Iterator[socket.socket]:
    with listen(port) as opened:
        yield opened


def listen(port: int, shared: bool = False) -> socket.socket:
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(("127.0.0.1", port))
    opened.listen()
    return opened


def test_port_is_not_free_when_somebody_listens(port: int, listener: socket.socket) -> None:
    assert not ports.is_free(port)
    assert ports.find_free_port(port) != port


def test_port_is_not_free_when_somebody_listens_and_shares_it(port: int) -> None:
    with listen(port, shared=True):
        assert not ports.is_free(port)


def test_port_is_free_when_only_closed_connections_linger_on_it(port: int) -> None:
    with listen(port) as server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    assert ports.is_free(port)


def test_free_port_is_the_preferred_one_unless_it_is_to_be_avoided(port: int) -> None:
    assert ports.find_free_port(port) == port
    assert ports.find_free_port(port, avoid={port}) != port


def test_claim_is_refused_with_the_port_and_the_option_when_somebody_listens(
    port: int, listener: socket.socket
) -> None:
    with pytest.raises(PortTaken, match=rf"port {port} .*--port") as caught:
        ports.claim_front_port(port)
    assert caught.value.port == port


def test_claim_is_refused_when_another_claim_holds_the_port_though_nobody_listens(port: int) -> None:
    with ports.claim_front_port(port), pytest.raises(PortTaken):
        ports.claim_front_port(port)
    ports.claim_front_port(port).close()


def test_claim_lets_those_listen_who_share_the_port_and_gets_none_of_their_connections(port: int) -> None:
    with ports.claim_front_port(port), listen(port, shared=True) as one, listen(port, shared=True) as two:
        for listener in (one, two):
            listener.setblocking(False)
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                accepted = 0
                for listener in (one, two):
                    try:
                        listener.accept()[0].close()
                        accepted += 1
                        break
                    except BlockingIOError:
                        continue
                assert accepted == 1


def test_node_ports_are_refused_with_the_name_of_the_node_when_one_is_taken(port: int, listener: socket.socket) -> None:
    with pytest.raises(PortTaken, match=rf"port {port} .*node-2"):
        ports.check_node_ports({ports.find_free_port(): "node-1", port: "node-2"})
