"""Small blobs in memory: the right bytes or none, within their limits, and only of what lies elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.digests import block_digests
from sharding.errors import BlobUnavailable
from sharding.hot_blobs import ENTRY_BYTES, HotBlobs, HotLimits
from sharding.model import ShardId
from sharding.reader import BlobReader, BlobToRead
from tests.sharding.memory import HEDGE_SECONDS, instant
from tests.sharding.test_reader import Scene

BODY = b"some bytes"


@dataclass
class Looks:
    """A ``HotObserver`` that remembers."""

    hits: list[bool] = field(default_factory=list)
    held_bytes: int = 0

    def observe_hot_blobs(self, *, hit: bool, held_bytes: int) -> None:
        self.hits.append(hit)
        self.held_bytes = held_bytes


def make_hot(blob_bytes_max: int = 100, blobs_bytes_max: int = 10_000) -> tuple[HotBlobs, Looks]:
    looks = Looks()
    return HotBlobs(lambda: HotLimits(blob_bytes_max, blobs_bytes_max), looks), looks


def name_of(data: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(data).digest(), block_digests(data)


def reader(scene: Scene, hot: HotBlobs) -> BlobReader:
    blob = BlobToRead(scene.sha256, len(scene.body), scene.catalogue.rows)
    return BlobReader(lambda: scene.cluster.view, blob, scene.catalogue, hedge_seconds=HEDGE_SECONDS, hot=hot)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.integers(0, 12 * ENTRY_BYTES))
def test_what_is_kept_stays_within_its_limits_and_is_found_as_it_was(
    steps: list[tuple[bool, int]], blobs_bytes_max: int
) -> None:
    hot, looks = make_hot(60, blobs_bytes_max)
    for keep, number in steps:
        data = bytes([number]) * (10 * number)
        sha256, digest = name_of(data)
        if keep:
            hot.keep(sha256, data)
            assert hot.held_bytes <= blobs_bytes_max
        else:
            found = hot.find(sha256, digest)
            assert found in (None, data)
            assert found is None or len(data) <= 60
            assert looks.held_bytes == hot.held_bytes


def test_the_longest_unused_makes_room() -> None:
    hot, _ = make_hot(blobs_bytes_max=2 * (1 + ENTRY_BYTES))
    for data in (b"a", b"b"):
        hot.keep(name_of(data)[0], data)
    hot.find(*name_of(b"a"))
    hot.keep(name_of(b"c")[0], b"c")
    assert [hot.find(*name_of(data)) for data in (b"a", b"b", b"c")] == [b"a", None, b"c"]


def test_a_lowered_limit_holds_at_the_next_blob() -> None:
    limits = HotLimits(100, 10_000)
    hot = HotBlobs(lambda: limits, Looks())
    hot.keep(name_of(b"a")[0], b"a")
    limits = HotLimits(100, 0)
    hot.keep(name_of(b"b")[0], b"b")
    assert hot.held_bytes == 0


def test_bytes_that_changed_in_memory_are_not_given_out() -> None:
    hot, looks = make_hot()
    hot.keep(name_of(BODY)[0], b"other bytes")
    assert hot.find(*name_of(BODY)) is None
    assert (hot.held_bytes, looks.hits) == (0, [False])


@instant
async def test_a_blob_of_another_node_is_read_once() -> None:
    scene, (hot, looks) = Scene(BODY, (2, 4)), make_hot()
    counts = scene.count_reads()
    for _ in range(3):
        assert await reader(scene, hot).read_small() == BODY
    assert sum(counts.values()) == 1
    assert looks.hits == [False, True, True]


@instant
async def test_a_blob_of_an_own_disk_is_read_from_there() -> None:
    scene, (hot, looks) = Scene(BODY, (0, 2)), make_hot()
    counts = scene.count_reads()
    for _ in range(2):
        assert await reader(scene, hot).read_small() == BODY
    assert (counts[ShardId(0)], hot.held_bytes, looks.hits) == (2, 0, [])


@instant
async def test_a_wrong_copy_is_not_kept() -> None:
    scene, (hot, _) = Scene(BODY, (2,)), make_hot()
    scene.damage(2, b"bome sytes")
    with pytest.raises(BlobUnavailable):
        await reader(scene, hot).read_small()
    assert hot.held_bytes == 0


@instant
async def test_what_was_read_lately_is_still_read_when_every_copy_is_gone() -> None:
    """The bytes are right; that copies are missing is found by who looks after them."""
    scene, (hot, _) = Scene(BODY, (2, 4)), make_hot()
    assert await reader(scene, hot).read_small() == BODY
    scene.catalogue.rows = ()
    assert await reader(scene, hot).read_small() == BODY
