"""What a fault is: it begins, it stays for a while, it ends. Then the cluster recovers by itself."""

from __future__ import annotations

import random
from typing import Protocol

from tests.chaos.scene import Scene


class Fault(Protocol):
    """One fault, of one time: an object is used once."""

    needs: frozenset[str]
    """Of the scene's abilities."""

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        """Make it, with choices drawn from ``chance``; return whom it befell."""
        ...

    async def end(self, scene: Scene) -> None:
        """Take back what does not end by itself."""
        ...
