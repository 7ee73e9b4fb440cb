"""Which fault comes when: drawn by a seed, so that the same seed gives the same sequence. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """Yield faults without end: every one of ``names`` once, in an order of its own, then all again in another."""
    chance = random.Random(seed)
    number = 0
    while True:
        for name in chance.sample(sorted(names), len(names)):
            number += 1
            yield Draw(
                number, name, chance.uniform(*HOLD_SECONDS), chance.uniform(*PAUSE_SECONDS), f"{seed}/{number}/{name}"
            )
