"""Which fault comes when: drawn by a seed, so that the same seed gives the same sequence. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby

HOLD_SECONDS = (2.0, 9.0)
PAUSE_SECONDS = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Draw:
    """One fault to come: its ``name``, how long it stays, the pause before it, and the seed of its own choices."""

    number: int
    name: str
    hold_seconds: float
    pause_seconds: float
    seed: str

    @property
    def random(self) -> random.Random:
        return random.Random(self.seed)


def draws(seed: int, names: Sequence[str]) -> Iterator[Draw]:
    """Yield faults without end, one of every kind in each round; what kind a fault is of is said before its dot.

    The faults of a kind take turns, so that each of ``names`` comes before any of its kind comes again.
    """
    chance = random.Random(seed)
    kinds = {kind: list(group) for kind, group in groupby(sorted(names), key=lambda name: name.partition(".")[0])}
    turns = {kind: turn(group, chance) for kind, group in kinds.items()}
    number = 0
    while True:
        for kind in chance.sample(sorted(kinds), len(kinds)):
            number += 1
            name, hold, pause = next(turns[kind]), chance.uniform(*HOLD_SECONDS), chance.uniform(*PAUSE_SECONDS)
            yield Draw(number, name, hold, pause, f"{seed}/{number}/{name}")


def turn(names: Sequence[str], chance: random.Random) -> Iterator[str]:
    """Yield ``names`` over and over, in an order drawn once."""
    return cycle(chance.sample(names, len(names)))
