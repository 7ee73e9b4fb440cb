"""The sockets of a node: one node at an address, however many processes it is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from repo_node.config import NodeConfig
from repo_node.web.listeners import Listeners, bound_listeners
from tests.repo_node.nodes import configure, free_address


def config_of(directory: Path, workers: int) -> NodeConfig:
    config = configure("postgresql://nowhere", directory, http={"shared_listen": free_address()})
    return config.model_copy(update={"node": config.node.model_copy(update={"workers": workers})})


def serve(listeners: list[Listeners]) -> None:
    for one in listeners:
        for listener in one.all:
            listener.listen()


def test_every_process_has_sockets_of_its_own_at_the_same_addresses(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3)
    with bound_listeners(config) as listeners:
        assert len(listeners) == 3
        for kind, address in (("internal", config.internal.listen), ("public", config.http.listen)):
            names = {getattr(one, kind).getsockname() for one in listeners}
            assert names == {(address.host, address.port)}
    assert all(listener.fileno() == -1 for one in listeners for listener in one.all)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_a_second_node_at_the_same_addresses_is_refused(tmp_path: Path, first: int, second: int) -> None:
    config = config_of(tmp_path, first)
    other = config.model_copy(update={"node": config.node.model_copy(update={"workers": second})})
    with bound_listeners(config) as listeners:
        serve(listeners)
        with pytest.raises(OSError, match=f"cannot listen on {config.internal.listen}"), bound_listeners(other):
            raise AssertionError
    with bound_listeners(other) as listeners:
        serve(listeners)


def test_the_address_stays_taken_while_a_process_of_the_node_is_left(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2)
    with bound_listeners(config) as listeners:
        guard = listeners[1].guard
        assert guard is not None
        # As a worker has it, when its main process is gone and it is not yet.
        held = socket.socket(fileno=socket.dup(guard.fileno()))
    with pytest.raises(OSError, match="cannot listen"), bound_listeners(config):
        raise AssertionError
    held.close()
    with bound_listeners(config):
        pass
