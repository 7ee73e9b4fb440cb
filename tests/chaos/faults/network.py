"""Faults of the network: ways on which everything is lost, in both directions, in one, or now and then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from tests.chaos.faults.fault import Fault
from tests.chaos.scene import Scene
from tests.cluster.network import POSTGRES, ROOT

Way = tuple[int, int]
FLAP_SECONDS = (0.3, 2.5)


def from_postgres(chance: random.Random, nodes: int) -> Sequence[Way]:
    node = chance.randint(1, nodes)
    return (node, POSTGRES), (POSTGRES, node)


def from_balancer(chance: random.Random, nodes: int) -> Sequence[Way]:
    node = chance.randint(1, nodes)
    return (node, ROOT), (ROOT, node)


def from_peer(chance: random.Random, nodes: int) -> Sequence[Way]:
    one, other = chance.sample(range(1, nodes + 1), 2)
    return (one, other), (other, one)


def from_peers(chance: random.Random, nodes: int) -> Sequence[Way]:
    node = chance.randint(1, nodes)
    return [way for other in range(1, nodes + 1) if other != node for way in ((node, other), (other, node))]


def one_way(chance: random.Random, nodes: int) -> Sequence[Way]:
    one, other = chance.sample((POSTGRES, *range(1, nodes + 1)), 2)
    return [(one, other)]


class Cut:
    """Some ways are cut."""

    needs = frozenset({"network"})

    def __init__(self, choose: Callable[[random.Random, int], Sequence[Way]]) -> None:
        self._choose = choose

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        assert scene.network is not None
        ways = self._choose(chance, scene.network.nodes)
        for way in ways:
            await scene.apart(scene.network.cut, *way)
        return ", ".join(f"{say(source)} to {say(target)}" for source, target in ways)

    async def end(self, scene: Scene) -> None:
        assert scene.network is not None
        await scene.apart(scene.network.mend)


class Flap:
    """A way is cut and opened again, time after time."""

    needs = frozenset({"network"})

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        ways = chance.choice((from_postgres, from_balancer, from_peer, one_way))(chance, len(scene.nodes))
        self._flapping = asyncio.create_task(self._flap(scene, chance, ways))
        return ", ".join(f"{say(source)} to {say(target)}" for source, target in ways)

    async def _flap(self, scene: Scene, chance: random.Random, ways: Sequence[Way]) -> None:
        assert scene.network is not None
        while True:
            for way in ways:
                await scene.apart(scene.network.cut, *way)
            await asyncio.sleep(chance.uniform(*FLAP_SECONDS))
            await scene.apart(scene.network.mend)
            await asyncio.sleep(chance.uniform(*FLAP_SECONDS))

    async def end(self, scene: Scene) -> None:
        assert scene.network is not None
        self._flapping.cancel()
        with suppress(asyncio.CancelledError):
            await self._flapping
        # A thread that cut a way a moment ago may still be at it.
        await asyncio.sleep(0.5)
        await scene.apart(scene.network.mend)


def say(place: int) -> str:
    return {POSTGRES: "postgres", ROOT: "balancer"}.get(place, f"node-{place}")


FAULTS: dict[str, Callable[[], Fault]] = {
    "net.postgres": partial(Cut, from_postgres),
    "net.balancer": partial(Cut, from_balancer),
    "net.peer": partial(Cut, from_peer),
    "net.peers": partial(Cut, from_peers),
    "net.one_way": partial(Cut, one_way),
    "net.flapping": Flap,
}
