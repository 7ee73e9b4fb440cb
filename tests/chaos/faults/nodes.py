"""Faults of whole nodes: killed, also at chosen places of the protocols, frozen, stopped, with a wrong clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from uuid import uuid4

from sharding.crash_points import ALLOWED, AT, NAMES
from tests.chaos.client import Client
from tests.chaos.faults.disks import Spoil, delete, flip_bit
from tests.chaos.faults.fault import Fault
from tests.chaos.places import folder_of
from tests.chaos.scene import LEASE_SECONDS, Scene, find_faketime
from tests.chaos.trees import Tree, deploy_archive
from tests.cluster.processes import NodeProcess, is_ready

CRASH_SECONDS_MAX = 60.0
ELECTIONS_MAX = 6
AWAY_SECONDS = 4.0
NOBODY = 99
"""No worker has this number."""

ATOMIC = ("explode.durable", "explode.committed")
"""Where only those archives pass that come all at one moment."""

HOUR = 3_600


class Kill:
    """``kill -9`` of a node."""

    needs = frozenset[str]()

    def __init__(self, *, is_primary: bool = False) -> None:
        self._is_primary = is_primary

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._node = await choose(scene, chance, is_primary=self._is_primary)
        await scene.end_node(self._node)
        return self._node.id

    async def end(self, scene: Scene) -> None:
        await scene.start_node(self._node)


class Freeze:
    """Every process of a node stops where it is; a frozen primary for longer than its lease."""

    needs = frozenset[str]()

    def __init__(self, *, is_primary: bool = False) -> None:
        self._is_primary = is_primary

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._node = await choose(scene, chance, is_primary=self._is_primary)
        self._node.freeze()
        if self._is_primary:
            await asyncio.sleep(LEASE_SECONDS * 1.5)
        return self._node.id

    async def end(self, scene: Scene) -> None:
        self._node.thaw()


class Drain:
    """SIGTERM and, once the node has left, a start."""

    needs = frozenset[str]()

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._node = chance.choice(scene.nodes)
        await scene.stop_node(self._node)
        return self._node.id

    async def end(self, scene: Scene) -> None:
        await scene.start_node(self._node)


class Skew:
    """The wall clock of one node is an hour off."""

    needs = frozenset({"faketime"})

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._node = node = chance.choice(scene.nodes)
        offset = chance.choice((-HOUR, HOUR))
        await scene.stop_node(node)
        before = dict(node.extra_environment)
        node.extra_environment |= {
            "LD_PRELOAD": str(find_faketime()),
            "FAKETIME": f"{offset:+d}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        try:
            await scene.start_node(node)
        finally:
            node.extra_environment = before
        return f"{node.id} by {offset} s"

    async def end(self, scene: Scene) -> None:
        await scene.stop_node(self._node)
        await scene.start_node(self._node)


class Crash:
    """A node dies at a chosen place. What leads there is brought about, as far as the load alone does not."""

    needs = frozenset[str]()

    def __init__(self, point: str) -> None:
        self._point = point

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._node = node = chance.choice(scene.nodes)
        count = chance.randint(1, 4) if self._point.startswith("upload.") else 1
        await scene.stop_node(node)
        before = dict(node.extra_environment)
        node.extra_environment |= {AT: f"{self._point}:{count}", ALLOWED: "1"}
        try:
            await scene.apart(node.start)
        finally:
            node.extra_environment = before
        try:
            async with asyncio.timeout(CRASH_SECONDS_MAX):
                await self._lead_there(scene, chance)
                while node.running:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return f"{node.id}, which did not pass there"
        return f"{node.id} at passing {count}"

    async def _lead_there(self, scene: Scene, chance: random.Random) -> None:
        if self._point.startswith("upload."):
            return
        while self._node.running and not await scene.apart(answers, self._node):
            await asyncio.sleep(0.2)
        match self._point.partition(".")[0]:
            case "explode":
                tree = Tree(f"{folder_of(NOBODY)}/{self._node.id}-{uuid4().hex}")
                async with Client(self._node.url, scene.ledger) as client:
                    await deploy_archive(client, tree, chance, is_atomic=self._point in ATOMIC)
            case "gc":
                await make_primary(scene, self._node)
            case "repair":
                # Any node may take a repair.
                while self._node.running:
                    await Spoil(delete).begin(scene, chance)
                    await scene.rest(unless=lambda: not self._node.running)
            case "quarantine":
                await Spoil(flip_bit, self._node).begin(scene, chance)
            case "move":
                # What another node misses meanwhile comes to this one, and is to be moved afterwards.
                other = next(one for one in scene.nodes if one is not self._node)
                await scene.end_node(other)
                await asyncio.sleep(AWAY_SECONDS)
                await scene.start_node(other)

    async def end(self, scene: Scene) -> None:
        if self._node.running:
            await scene.stop_node(self._node)
        await scene.start_node(self._node)


def answers(node: NodeProcess) -> bool:
    """Say whether a node that may end at any moment is ready."""
    try:
        return is_ready(node)
    except AssertionError:
        return False


async def choose(scene: Scene, chance: random.Random, *, is_primary: bool) -> NodeProcess:
    node = chance.choice(scene.nodes)
    return (await scene.apart(scene.primary) or node) if is_primary else node


async def make_primary(scene: Scene, node: NodeProcess) -> None:
    """Stop the primaries until it is the turn of ``node``, which dies in office perhaps before it is seen there."""
    for _ in range(ELECTIONS_MAX):
        holder = await scene.apart(scene.primary)
        if holder is node or not node.running:
            return
        if holder is not None:
            await scene.stop_node(holder)
            await scene.start_node(holder)
        await asyncio.sleep(0.5)


FAULTS: dict[str, Callable[[], Fault]] = {
    "node.killed": Kill,
    "node.frozen": Freeze,
    "node.drained": Drain,
    "node.skewed": Skew,
    "primary.killed": partial(Kill, is_primary=True),
    "primary.frozen": partial(Freeze, is_primary=True),
    **{f"crash.{point}": partial(Crash, point) for point in sorted(NAMES)},
}
