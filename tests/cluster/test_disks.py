"""Disks that fail under a running load: each keeps what was acknowledged, and the cluster becomes whole again.

One cluster serves all tests of this file, one after the other. Needs root.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, NodeProcess, cluster, curl, is_ready, sha256_of, status, until
from tests.cluster.test_healing import direct, hasten, is_whole, number, shard_at, state_of
from tests.postgres import TestServer
from tests.sharding import disks
from tests.tools import require_root

DISK_MIB = 96
SIZES = (100, 5_000, 100_000)
"""The last is too long for the room that ext4 sets aside for small files: it takes free blocks at once."""
QUICK: dict[str, Any] = {
    "lease_renew_seconds": 0.5,
    "lease_seconds": 3,
    "judge_interval_seconds": 0.3,
    "presence_interval_seconds": 0.5,
    "scrub_interval_seconds": 0.2,
    "rebalance_idle_seconds": 0.5,
    "rebalance_period_seconds": 1,
    "trim_period_seconds": 1,
    "removal_delay_seconds": 0,
    "removal_idle_seconds": 0.3,
    "gc_grace_seconds": 0,
    "gc_idle_seconds": 0.5,
    "trash_days": 0,
    "trash_idle_seconds": 0.5,
}
UNREST_SQL = """
    SELECT (SELECT count(*) FROM blobs b
             WHERE b.size > 0 AND (SELECT count(DISTINCT h.shard_id) FROM homes(b.id) h) <> b.redundancy)
         + (SELECT count(*) FROM replicas r JOIN shards s ON s.id = r.shard_id
             WHERE r.state = 'suspect' AND s.state <> 'lost')
         + (SELECT count(*) FROM removals r JOIN shards s ON s.id = r.shard_id WHERE s.state <> 'lost')
"""
"""Blobs with copies too few or too many, doubts and files to be removed, but for what is on lost shards."""


@dataclass
class Hall:
    """The cluster and its disks: one in a small memory, one that dies, two on a node that restarts."""

    cluster: Cluster
    small_memory: Path
    fickle: Path
    mortal: Path
    first: Path
    second: Path

    @property
    def restarted(self) -> NodeProcess:
        return self.cluster.nodes[1]


@pytest.fixture(scope="module")
def hall(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    require_root("disks have to be mounted")
    base = tmp_path_factory.mktemp("disks")
    with ExitStack() as stack:
        memory = stack.enter_context(disks.mounted_tmpfs(base / "memory", size_kib=(DISK_MIB + 32) << 10))
        fickle, mortal, first, second = (base / name for name in ("fickle", "mortal", "first", "second"))
        for path in (mortal, first, second):
            # One group of blocks: what the file system keeps of itself lies before the data.
            disks.make_ext4(image_of(path), DISK_MIB, "-b", "4096", "-m", "0")
            stack.enter_context(disks.remounted_ext4(path, image_of(path)))
        # A journal so long that only the files' own bytes meet the want of room.
        disks.make_ext4(memory / "img", DISK_MIB, "-b", "4096", "-m", "0", "-J", "size=32")
        disks.take_every_block(memory / "img")
        stack.enter_context(disks.remounted_ext4(fickle, memory / "img"))
        dsn = stack.enter_context(postgres.database(postgres.template()))
        made = stack.enter_context(cluster(base / "cluster", dsn, nodes=0))
        made.add_node(shard_paths=[fickle, mortal])
        made.add_node(shard_paths=[first, second])
        made.add_node()
        for node in made.nodes:
            node.extra_environment["HOLDFAST_TEST_WITHOUT_GRACE"] = "1"
        made.start()
        for disk in (fickle, mortal, first, second):
            make_folders(disk)
        hasten(made, **QUICK)
        share_evenly(made)
        yield Hall(made, memory, fickle, mortal, first, second)


def make_folders(disk: Path) -> None:
    """Make all folders of a shard before its files: then no fault that is meant for a file's bytes hits a folder."""
    for name in range(256):
        (disk / "blobs" / f"{name:02x}").mkdir(mode=0o700, exist_ok=True)


def share_evenly(made: Cluster) -> None:
    """Let the small disks have as many copies as the large ones of the third node."""
    for shard in status(made.live)["shards"]:
        assert direct(made, "PUT", f"shards/{shard['id']}/weight", {"weight": 1})[0] == 200


def image_of(disk: Path) -> Path:
    return disk.with_suffix(".img")


@asynccontextmanager
async def loaded(hall: Hall, seed: int, *, clients_notice: bool = False) -> AsyncIterator[LedgerClient]:
    """Load the cluster; in the end nothing acknowledged may be lost, and every blob whole and right on its disks.

    Only where ``clients_notice``, when a node goes with its disks, may a request fail at first.
    """
    stop = asyncio.Event()
    async with LedgerClient([node.url for node in hall.cluster.nodes], seed=seed, retries=3) as client:
        load = asyncio.create_task(client.mixed_load(stop, workers=3, sizes=SIZES, pause_seconds=0.1))
        try:
            await until(lambda: len(client.ledger.acknowledged) > 30, "the load to begin", 20)
            yield client
        finally:
            stop.set()
            await load
        await client.verify()
        assert client.ledger.wrong == []
        assert clients_notice or client.ledger.failures == {}
        await until(lambda: is_whole(hall.cluster), "every blob to be whole", 60)
        await until(lambda: number(hall.cluster, UNREST_SQL) == 0, "the cluster to come to rest", 60)
        await until(lambda: has_right_copies(hall.cluster), "every copy to be right on its disk", 60)
        await client.verify()
        assert client.ledger.wrong == []


def has_right_copies(made: Cluster) -> bool:
    """Say whether every live replica that is not on a lost shard is right on its disk; copies move all the time."""
    rows = made.query(
        "SELECT encode(b.sha256, 'hex') AS sha256, r.generation FROM replicas r"
        " JOIN blobs b ON b.id = r.blob_id JOIN shards s ON s.id = r.shard_id"
        " WHERE r.state = 'live' AND s.state <> 'lost'"
    )
    files = {file.name: file for node in made.nodes for shard in node.shards for file in shard.glob("blobs/*/*")}
    return all(is_right(files.get(f"{row['sha256']}.{row['generation']}"), row["sha256"]) for row in rows)


def is_right(file: Path | None, sha256: str) -> bool:
    if file is None:
        return False
    try:
        disks.forget_cached(file)
        return sha256_of(file) == sha256
    except OSError:
        return False


def failures(node: NodeProcess, shard: int, *outcomes: str) -> float:
    """Return how many calls of ``shard`` ended so on ``node``, in whatever way if no outcome is named."""
    lines = curl(f"{node.url}/metrics", fail=True)[1].decode().splitlines()
    wanted = [f'outcome="{outcome}"' for outcome in outcomes] or ["outcome="]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("holdfast_shard_errors_total{")
        and f'shard="{shard}"' in line
        and any(outcome in line for outcome in wanted)
    )


def more_files(disk: Path) -> Callable[[], bool]:
    before = len(list(disk.glob("blobs/*/*")))
    return lambda: len(list(disk.glob("blobs/*/*"))) > before + 3


async def test_copy_whose_fsync_fails_once_counts_for_nothing(hall: Hall) -> None:
    shard, ballast = shard_at(hall.cluster, hall.fickle), hall.small_memory / "ballast"
    node = hall.cluster.nodes[0]
    failed = failures(node, shard, "full", "unavailable")
    async with loaded(hall, 1):
        disks.give_up_free_blocks(hall.fickle)
        disks.fill_up(ballast)
        await until(lambda: failures(node, shard, "full", "unavailable") > failed, "an fsync to fail", 15)
        ballast.unlink()
        await until(more_files(hall.fickle), "the disk to be written again", 20)


async def test_read_only_disk_serves_on_and_is_written_again_afterwards(hall: Hall) -> None:
    shard = shard_at(hall.cluster, hall.fickle)
    async with loaded(hall, 2):
        disks.remount_read_only(hall.fickle)
        await until(lambda: not is_writable(hall.cluster, shard), "the disk to be seen as read-only", 15)
        (row,) = (one for one in status(hall.cluster.live)["shards"] if one["id"] == shard)
        assert row["up"] and "read-only" in row["trouble"]
        await asyncio.sleep(1)
        disks.remount_writable(hall.fickle)
        await until(more_files(hall.fickle), "the disk to be written again", 20)


async def test_full_disk_is_written_again_once_there_is_room(hall: Hall) -> None:
    shard, ballast = shard_at(hall.cluster, hall.mortal), hall.mortal / "ballast"
    async with loaded(hall, 3):
        await until(lambda: is_full(hall.cluster, shard, ballast), "the disk to count as full", 15)
        await asyncio.sleep(0.5)
        ballast.unlink()
        await until(more_files(hall.mortal), "the disk to be written again", 20)


def is_full(made: Cluster, shard: int, ballast: Path) -> bool:
    disks.fill_up(ballast)
    return not is_writable(made, shard)


def is_writable(made: Cluster, shard: int) -> bool:
    return any(one["writable"] for one in status(made.live)["shards"] if one["id"] == shard)


async def test_slow_disk_keeps_no_upload_waiting_for_long(hall: Hall) -> None:
    node, shard = hall.cluster.nodes[0], shard_at(hall.cluster, hall.fickle)
    assert node.process is not None
    async with loaded(hall, 8) as client:
        failed, uploads = failures(node, shard), len(client.ledger.acknowledged)
        with disks.throttled(hall.fickle, node.process.pid, bytes_per_second=20_000):
            await until(lambda: failures(node, shard) > failed, "an upload to give the disk up", 30)
            await until(lambda: len(client.ledger.acknowledged) > uploads + 10, "the load to go on", 30)
        await until(more_files(hall.fickle), "the disk to be written again", 20)


async def test_unreadable_part_of_a_disk_is_found_and_its_copies_are_made_anew(hall: Hall) -> None:
    made, disk = hall.cluster, hall.first
    shard = shard_at(made, disk)
    found = (
        "SELECT count(*) FROM events WHERE kind = 'quarantine' AND detail->>'reason' = 'unreadable'"
        " AND (detail->>'shard')::int = $1"
    )
    async with loaded(hall, 4):
        await until(lambda: len(list(disk.glob("blobs/*/*"))) > 30, "files to lie there", 20)
        # What is written into the part that is cut off would make it readable again.
        assert direct(made, "POST", f"shards/{shard}/readonly")[0] == 200
        await until(lambda: is_still(disk), "the disk to be written no more", 20)
        with cut_off(disk) as bad:
            hasten(made, scrub_period_seconds=2)
            await until(lambda: number(made, found, shard) > 0, "the scrub to find it", 20)
            await until(lambda: not any(file.exists() for file in bad), "the unreadable files to be set aside", 30)
            hasten(made, scrub_period_seconds=86_400)
        assert direct(made, "POST", f"shards/{shard}/activate")[0] == 200


@contextmanager
def cut_off(disk: Path) -> Iterator[list[Path]]:
    """Make the end of a disk unreadable, where a third of its files lie; yield which. Then it is as it was."""
    begins = {}
    for file in disk.glob("blobs/*/*"):
        # What has a better place elsewhere may leave at any moment.
        with suppress(FileNotFoundError):
            begins[file] = disks.bytes_on_device(file)[0]
    cut = sorted(begins.values())[len(begins) * 2 // 3]
    bad = [file for file, begin in begins.items() if begin >= cut]
    subprocess.run(["sync", "-f", str(disk)], check=True)
    for file in bad:
        with suppress(FileNotFoundError):
            disks.forget_cached(file)
    with image_of(disk).open("r+b") as image:
        image.seek(cut)
        end = image.read()
        image.truncate(cut)
        try:
            yield bad
        finally:
            image.seek(cut)
            image.write(end)


def is_still(disk: Path) -> bool:
    before = set(disk.glob("*/*/*"))
    time.sleep(0.5)
    return set(disk.glob("*/*/*")) == before


async def test_disks_that_lost_their_power_keep_what_was_acknowledged(hall: Hall) -> None:
    made, node = hall.cluster, hall.restarted
    hasten(made, lost_after_seconds=60)
    async with loaded(hall, 5, clients_notice=True):
        for disk in (hall.first, hall.second):
            disks.kill_file_system(disk)
        node.kill()
        for disk in (hall.first, hall.second):
            disks.unmount(disk)
            disks.mount_image(image_of(disk), disk)
        node.start()
        await until(lambda: is_ready(node), "the node to come back", 30)
        await until(made.is_whole, "the nodes to know one another again", 20)


async def test_shards_long_absent_are_refused_at_wrong_mounts_and_their_stale_files_go(hall: Hall) -> None:
    made, node = hall.cluster, hall.restarted
    both = {hall.first: image_of(hall.first), hall.second: image_of(hall.second)}
    shards = [shard_at(made, disk) for disk in both]
    deleted = [f"generic-local/deleted/{n}" for n in range(12)]
    async with LedgerClient([made.url]) as client:
        for path in deleted:
            assert await client.put(path, path.encode() * 99)
        digests = list(client.ledger.acknowledged.values())
    async with loaded(hall, 6, clients_notice=True):
        stale = [file for disk in both for digest in digests for file in disk.glob(f"blobs/*/{digest}.*")]
        assert stale
        node.kill()
        hasten(made, lost_after_seconds=2)
        await mount_crosswise_and_start(node, both)
        await until(lambda: {state_of(made, shard) for shard in shards} == {"lost"}, "the verdict", 20)
        for path in deleted:
            curl("-X", "DELETE", f"{made.live.url}/artifactory/{path}", fail=True)
        blobs = "SELECT count(*) FROM blobs WHERE encode(sha256, 'hex') = ANY ($1::text[])"
        await until(lambda: number(made, blobs, digests) == 0, "the deleted content to be collected", 20)
        for disk, image in both.items():
            disks.mount_image(image, disk)
        assert all(file.exists() for file in stale)
        node.start()
        await until(lambda: is_ready(node), "the node to come back", 30)
        await until(lambda: {state_of(made, shard) for shard in shards} == {"active"}, "its shards to return", 30)
        hasten(made, lost_after_seconds=60)
        await until(lambda: not any(file.exists() for file in stale), "the stale files to go", 20)
        for one in made.nodes:
            assert {curl(f"{one.url}/artifactory/{path}")[0] for path in deleted} == {404}


async def mount_crosswise_and_start(node: NodeProcess, both: dict[Path, Path]) -> None:
    """Start ``node`` with its two disks mixed up, which it refuses; they are not mounted afterwards."""
    first, second = both
    for disk in both:
        disks.unmount(disk)
    for disk, image in ((first, both[second]), (second, both[first])):
        disks.mount_image(image, disk)
    before = sorted(first.rglob("*")), sorted(second.rglob("*"))
    node.start()
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 30) == 1
    assert "is the right disk mounted?" in node.log.read_text()
    assert (sorted(first.rglob("*")), sorted(second.rglob("*"))) == before
    for disk in both:
        disks.unmount(disk)


async def test_dead_disk_is_declared_lost_and_made_good_elsewhere(hall: Hall) -> None:
    made = hall.cluster
    shard = shard_at(made, hall.mortal)
    hasten(made, lost_after_seconds=2)
    async with loaded(hall, 7):
        disks.kill_file_system(hall.mortal)
        await until(lambda: state_of(made, shard) == "lost", "the verdict", 40)
