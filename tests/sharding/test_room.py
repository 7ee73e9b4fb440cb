"""Memory for blocks is used again, and by one at a time."""

from __future__ import annotations

import pytest

from sharding.model import BLOCK_BYTES
from sharding.room import CLEARED_BYTES_MAX, ROOM_BYTES, SPARE_MAX, Room, room_for


@pytest.mark.parametrize("length", [0, 1, CLEARED_BYTES_MAX, CLEARED_BYTES_MAX + 1, ROOM_BYTES, ROOM_BYTES + 1])
def test_room_has_the_length_that_was_asked_for_and_can_be_filled(length: int) -> None:
    room = room_for(length)
    room[:] = b"x" * length
    assert room == b"x" * length


def test_room_is_lent_again_once_the_last_view_of_it_is_gone() -> None:
    room = room_for(BLOCK_BYTES)
    room[:4] = b"mine"
    view = room[:4]
    del room
    others = [room_for(BLOCK_BYTES) for _ in range(SPARE_MAX + 1)]
    for other in others:
        other[:4] = b"them"
    assert view == b"mine"
    Room.spare.clear()
    del view
    assert room_for(BLOCK_BYTES)[:4] == b"mine"


def test_no_more_rooms_are_kept_than_may_wait() -> None:
    rooms = [room_for(BLOCK_BYTES) for _ in range(SPARE_MAX + 8)]
    rooms.clear()
    assert len(Room.spare) == SPARE_MAX
