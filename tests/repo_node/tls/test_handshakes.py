"""How many handshakes are under way, whatever becomes of them."""

from __future__ import annotations

import ssl

import pytest

from repo_node.tls.handshakes import Handshakes, TooManyHandshakes

SECONDS = 10.0
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def begun(handshakes: Handshakes) -> ssl.SSLObject:
    handshakes.check()
    made = CONTEXT.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    handshakes.begin(made)
    return made


def test_no_more_begin_than_there_is_room_for_until_one_ends_well_or_is_forgotten() -> None:
    handshakes = Handshakes(lambda: 2, SECONDS)
    first: ssl.SSLObject | None = begun(handshakes)
    second = begun(handshakes)
    with pytest.raises(TooManyHandshakes):
        begun(handshakes)
    handshakes.end(second)
    third = begun(handshakes)
    with pytest.raises(TooManyHandshakes):
        begun(handshakes)
    assert first is not None and third is not second
    first = None
    assert len(handshakes) == 1


def test_one_that_somebody_still_holds_is_counted_for_its_time_alone() -> None:
    now = 0.0
    handshakes = Handshakes(lambda: 1, SECONDS, lambda: now)
    held = [begun(handshakes)]
    now = SECONDS - 1
    with pytest.raises(TooManyHandshakes):
        begun(handshakes)
    now = SECONDS
    held.append(begun(handshakes))
    handshakes.end(held[0])
    assert len(handshakes) == 1


def test_there_may_be_no_room_at_all() -> None:
    with pytest.raises(TooManyHandshakes):
        begun(Handshakes(lambda: 0, SECONDS))
