"""The digests: the same for any chunking, and a flipped bit is found in its block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sharding.digests import BlobHasher, block_digests, digest_small, verify_blocks
from sharding.model import BLOCK_BYTES, EXTRA_DIGESTS, BlobDigests, Buffer, block_count

# Bytes no two blocks of which are alike, cut to length by each example.
SOURCE = hashlib.shake_128(b"holdfast").digest(3 * BLOCK_BYTES + 1)

SIZES = st.one_of(
    st.integers(0, 3 * BLOCK_BYTES + 1),
    st.builds(lambda blocks, more: max(0, blocks * BLOCK_BYTES + more), st.integers(0, 3), st.integers(-1, 1)),
)


EXTRA = st.frozensets(st.sampled_from(sorted(EXTRA_DIGESTS)))


def expected_digests(data: bytes, extra: Collection[str] = EXTRA_DIGESTS) -> BlobDigests:
    """Return the digests by their definition, each computed alone."""
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    return BlobDigests(
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        sha1=hashlib.sha1(data).digest() if "sha1" in extra else None,
        md5=hashlib.md5(data).digest() if "md5" in extra else None,
        blocks=b"".join(xxh3_64_intdigest(block).to_bytes(8, "big") for block in blocks),
    )


@settings(max_examples=40, deadline=None)
@given(SIZES, st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=8), EXTRA)
def test_hasher_gives_the_same_digests_for_any_chunking(size: int, cuts: list[int], extra: frozenset[str]) -> None:
    data, hasher = SOURCE[:size], BlobHasher(extra)
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, end in pairwise(bounds):
        hasher.update(memoryview(data)[start:end])
    assert hasher.finish() == expected_digests(data, extra)
    if size <= BLOCK_BYTES:
        assert digest_small(data, extra) == expected_digests(data, extra)


def test_hasher_gives_the_same_digests_for_a_blob_in_tiny_chunks() -> None:
    data, hasher = SOURCE[: BLOCK_BYTES + 700], BlobHasher()
    for start in range(0, len(data), 997):
        hasher.update(data[start : start + 997])
    assert hasher.finish() == expected_digests(data)


def test_hasher_gives_empty_digests_before_the_first_byte() -> None:
    assert BlobHasher().finish() == expected_digests(b"")


def test_hasher_goes_on_after_it_was_asked_for_its_digests() -> None:
    hasher = BlobHasher()
    hasher.update(b"first ")
    assert hasher.finish() == expected_digests(b"first ")
    hasher.update(b"second")
    assert hasher.finish() == expected_digests(b"first second")


def test_hasher_keeps_nothing_of_a_buffer_that_is_reused() -> None:
    hasher, buffer = BlobHasher(), bytearray(b"once")
    hasher.update(buffer)
    buffer[:] = b"more"
    hasher.update(buffer)
    assert hasher.finish() == expected_digests(b"oncemore")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_digests_take_every_kind_of_buffer(kind: Callable[[bytes], Buffer]) -> None:
    data = SOURCE[:5000]
    hasher = BlobHasher()
    hasher.update(kind(data))
    assert hasher.finish() == digest_small(kind(data)) == expected_digests(data)
    assert verify_blocks(kind(data), block_digests(kind(data))) is None


def test_digests_count_bytes_when_the_buffer_has_wider_items() -> None:
    data = SOURCE[: 2 * BLOCK_BYTES]
    wide, hasher = memoryview(data).cast("Q"), BlobHasher()
    hasher.update(wide)
    assert hasher.finish() == expected_digests(data)
    assert verify_blocks(wide, block_digests(wide)) is None
    with pytest.raises(ValueError, match="small"):
        digest_small(wide)


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_block_digests_agree_with_the_hasher(size: int) -> None:
    data = SOURCE[:size]
    digests = block_digests(data)
    assert digests == expected_digests(data).blocks
    assert len(digests) == 8 * block_count(size)
    assert verify_blocks(data, digests) is None


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES])
def test_digest_small_agrees_with_the_hasher_up_to_one_block(size: int) -> None:
    assert digest_small(SOURCE[:size]) == expected_digests(SOURCE[:size])


def test_digest_small_is_refused_above_one_block() -> None:
    with pytest.raises(ValueError, match="small blob"):
        digest_small(SOURCE[: BLOCK_BYTES + 1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, len(SOURCE)), st.data())
def test_verify_blocks_finds_the_block_of_a_flipped_bit(size: int, data: st.DataObject) -> None:
    damaged = bytearray(SOURCE[:size])
    digests = block_digests(damaged)
    place = data.draw(st.integers(0, size - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    assert verify_blocks(damaged, digests) == place // BLOCK_BYTES


def test_verify_blocks_names_the_first_of_several_bad_blocks() -> None:
    damaged = bytearray(SOURCE)
    digests = block_digests(damaged)
    damaged[BLOCK_BYTES] ^= 1
    damaged[-1] ^= 1
    assert verify_blocks(damaged, digests) == 1


def test_verify_blocks_finds_a_block_cut_short() -> None:
    assert verify_blocks(SOURCE[: 2 * BLOCK_BYTES - 1], block_digests(SOURCE[: 2 * BLOCK_BYTES])) == 1


def test_verify_blocks_finds_blocks_that_changed_places() -> None:
    digests = block_digests(SOURCE[: 2 * BLOCK_BYTES])
    swapped = SOURCE[BLOCK_BYTES : 2 * BLOCK_BYTES] + SOURCE[:BLOCK_BYTES]
    assert verify_blocks(swapped, digests) == 0


@pytest.mark.parametrize(("size", "digests"), [(0, bytes(8)), (1, b""), (1, bytes(7)), (BLOCK_BYTES + 1, bytes(8))])
def test_verify_blocks_refuses_digests_of_another_length(size: int, digests: bytes) -> None:
    with pytest.raises(ValueError, match="bytes of digests"):
        verify_blocks(SOURCE[:size], digests)
