"""Faults of Postgres and its standby."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from tests.chaos.faults.fault import Fault
from tests.chaos.scene import Scene


class Killed:
    """A server ends as in a power cut, and is started again. Without its standby the primary acknowledges nothing."""

    needs = frozenset[str]()

    def __init__(self, role: str) -> None:
        self._role = role

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._server = getattr(scene.pair, self._role)
        await scene.apart(self._server.kill)
        return self._role

    async def end(self, scene: Scene) -> None:
        await scene.apart(self._server.postgres.start)


class Frozen:
    needs = frozenset[str]()

    def __init__(self, role: str) -> None:
        self._role = role

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._server = getattr(scene.pair, self._role)
        self._server.freeze()
        return self._role

    async def end(self, scene: Scene) -> None:
        self._server.thaw()


class FailedOver:
    """The primary is lost, dead or frozen, and its standby takes over; the next standby is made afterwards."""

    needs = frozenset[str]()

    def __init__(self, *, is_frozen: bool = False) -> None:
        self._is_frozen = is_frozen

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        old = scene.pair.primary
        if self._is_frozen:
            old.freeze()
        else:
            await scene.apart(old.kill)
        await scene.apart(scene.pair.promote)
        return f"port {old.postgres.files.state.port} to {scene.pair.primary.postgres.files.state.port}"

    async def end(self, scene: Scene) -> None:
        await scene.apart(scene.pair.rebuild)


FAULTS: dict[str, Callable[[], Fault]] = {
    "postgres.killed": partial(Killed, "primary"),
    "postgres.frozen": partial(Frozen, "primary"),
    "postgres.failed_over": FailedOver,
    "postgres.failed_over_frozen": partial(FailedOver, is_frozen=True),
    "standby.killed": partial(Killed, "standby"),
    "standby.frozen": partial(Frozen, "standby"),
}
