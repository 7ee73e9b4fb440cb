"""The numbers of splitmix64, thousands in a few steps: they stand side by side in one integer.

Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import unpack

LANE_BITS = 128
"""Room for one number: twice its 64 bits, so that a product does not reach into the next lane."""

WORD = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def splitmix64(seed: int, first: int, count: int) -> tuple[int, ...]:
    """Return ``count`` numbers of the stream that ``seed`` begins, from the one with index ``first`` on."""
    ones, steps = _lanes(count)
    low = ones * WORD
    numbers = (ones * (seed + first * GOLDEN_GAMMA & WORD) + steps) & low
    # What a shift brings down from the next lane is above the word, and masked.
    numbers = ((numbers ^ (numbers >> 30 & low)) * 0xBF58476D1CE4E5B9) & low
    numbers = ((numbers ^ (numbers >> 27 & low)) * 0x94D049BB133111EB) & low
    numbers ^= numbers >> 31 & low
    return unpack(f"<{2 * count}Q", numbers.to_bytes(count * LANE_BITS // 8, "little"))[::2]


@lru_cache(4)
def _lanes(count: int) -> tuple[int, int]:
    """Return 1 in each of ``count`` lanes, and the steps from the seed to the first ``count`` numbers."""
    steps = (index * GOLDEN_GAMMA & WORD for index in range(1, count + 1))
    return _side_by_side(1 for _ in range(count)), _side_by_side(steps)


def _side_by_side(numbers: Iterable[int]) -> int:
    return int.from_bytes(b"".join(number.to_bytes(LANE_BITS // 8, "little") for number in numbers), "little")
