"""Faults of disks and files: full, dead, without power, read-only; bits flipped, files taken away.

Copies are spoiled on one shard at a time, and only of blobs that have another: no cluster survives more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.chaos.faults.fault import Fault
from tests.chaos.scene import Damage, Scene, restore_disk
from tests.cluster.processes import NodeProcess
from tests.sharding import disks

SPOILED_MAX = 12
SAFE_SQL = """
    SELECT r.generation::text FROM replicas r JOIN shards s ON s.id = r.shard_id
     WHERE s.path = $1 AND r.state = 'live'
       AND (SELECT count(DISTINCT g.shard_id) FROM good_replicas(r.blob_id) g) > 1
"""
NOT_LOST_SQL = "SELECT 1 FROM shards WHERE path = ANY ($1::text[]) AND state <> 'lost'"
LOST_SECONDS_MAX = 120.0
DISKS = frozenset({"disks"})


class Full:
    """A disk has not a byte left."""

    needs = DISKS

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        disk = chance.choice([*scene.images])
        self._ballast = disk / "ballast"
        await scene.apart(disks.fill_up, self._ballast)
        return name_of(disk)

    async def end(self, scene: Scene) -> None:
        self._ballast.unlink()


class ReadOnly:
    """The kernel remounts a disk read-only."""

    needs = DISKS

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        self._disk = chance.choice([*scene.images])
        await scene.apart(disks.remount_read_only, self._disk)
        return name_of(self._disk)

    async def end(self, scene: Scene) -> None:
        await scene.apart(disks.remount_writable, self._disk)


class PowerLoss:
    """Disks lose what was not durable, and answer EIO; their nodes die with them at once, or are restarted later.

    Where all are hit, Postgres and its standby are too. ``is_lost`` waits until the verdict on the disks is spoken.
    """

    needs = DISKS

    def __init__(self, reach: str, *, dies_later: bool = False, is_lost: bool = False) -> None:
        self._reach = reach
        self._dies_later = dies_later
        self._is_lost = is_lost

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        node = chance.choice(scene.nodes)
        self._nodes = scene.nodes if self._reach == "all" else [node]
        self._disks = [Path(path) for one in self._nodes for path in one.shards]
        if self._reach == "shard":
            self._disks = [chance.choice(self._disks)]
        for disk in self._disks:
            await scene.apart(disks.kill_file_system, disk)
        if not self._dies_later:
            await asyncio.gather(*(scene.end_node(one) for one in self._nodes))
        if self._reach == "all":
            for server in (scene.pair.primary, scene.pair.standby):
                await scene.apart(server.kill)
        if self._is_lost:
            paths = [str(disk) for disk in self._disks]
            lost = lambda: not scene.query(NOT_LOST_SQL, paths)  # noqa: E731
            await scene.until(lost, "the verdict on a dead disk", LOST_SECONDS_MAX)
        return ", ".join(map(name_of, self._disks))

    async def end(self, scene: Scene) -> None:
        for node in self._nodes:
            await scene.end_node(node)
        for disk in self._disks:
            await scene.apart(restore_disk, disk, scene.images[disk])
        if self._reach == "all":
            for server in (scene.pair.primary, scene.pair.standby):
                await scene.apart(server.postgres.start)
        for node in self._nodes:
            await scene.apart(node.start)


class Spoil:
    """Something befalls some files of one shard, of ``node`` where one is given."""

    needs = frozenset[str]()

    def __init__(self, deed: Callable[[Path], None], node: NodeProcess | None = None) -> None:
        self._deed = deed
        self._node = node

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        node = self._node or chance.choice(scene.nodes)
        shard = chance.choice(node.shards)
        safe = {row[0] for row in await scene.apart(scene.query, SAFE_SQL, str(shard))}
        files = [path for path in sorted(shard.glob("blobs/*/*")) if path.name.partition(".")[2] in safe]
        chosen = chance.sample(files, min(SPOILED_MAX, len(files)))
        for path in chosen:
            with suppress(FileNotFoundError):
                self._deed(path)
                scene.damages.append(Damage(path, path.name.partition(".")[0]))
        return f"{len(chosen)} files of {name_of(shard)}"

    async def end(self, scene: Scene) -> None:
        """The cluster has to find out by itself."""


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 0x10]))


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def delete(path: Path) -> None:
    path.unlink()


def name_of(disk: Path) -> str:
    return f"{disk.parent.name}/{disk.name}"


FAULTS: dict[str, Callable[[], Fault]] = {
    "disk.full": Full,
    "disk.read_only": ReadOnly,
    "disk.dead": partial(PowerLoss, "shard", dies_later=True),
    "disk.lost": partial(PowerLoss, "shard", dies_later=True, is_lost=True),
    "power.shard": partial(PowerLoss, "shard"),
    "power.zone": partial(PowerLoss, "zone"),
    "power.all": partial(PowerLoss, "all"),
    "files.flipped": partial(Spoil, flip_bit),
    "files.cut_short": partial(Spoil, cut_short),
    "files.deleted": partial(Spoil, delete),
}
