"""Bad and missing replicas heal by themselves, with the settings a cluster starts with."""

from __future__ import annotations

import asyncio
import shutil
from itertools import count
from pathlib import Path

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, sha256_of, until
from tests.cluster.test_bad_replicas import FAULTS, flip_bit
from tests.cluster.test_healing import direct

SHORT_SQL = """
    SELECT count(*) FROM blobs b
     WHERE (SELECT count(DISTINCT g.shard_id) FROM good_replicas(b.id) g) < b.redundancy
"""


def is_whole(cluster: Cluster) -> bool:
    """Say whether the rows promise every copy, and the disks keep the promise byte for byte."""
    if cluster.query(SHORT_SQL)[0][0]:
        return False
    live = cluster.query("SELECT generation FROM replicas WHERE state = 'live'")
    names = {path.name.partition(".")[2]: path for node in cluster.nodes for path in node.blob_files()}
    return all(
        (path := names.get(str(row[0]))) is not None and sha256_of(path) == path.name.partition(".")[0] for row in live
    )


async def test_bad_replicas_that_were_read_are_replaced(three: Cluster) -> None:
    bodies = {
        f"generic-local/{fault.__name__}/{size}": (fault, f"{fault.__name__}{size}".encode() + bytes(size))
        for fault in FAULTS
        for size in (10, 50_000, 3_500_000)
    }
    async with LedgerClient([three.url], retries=0) as client:
        for path, (_, body) in bodies.items():
            assert await client.put(path, body)
        on_disk = three.replicas_on_disk()
        for path, (fault, _) in bodies.items():
            fault(on_disk[client.ledger.acknowledged[path]][0][1])
        # Each node reads its own copy first, so each bad one is read by somebody.
        for node in three.nodes:
            client.urls = [node.url]
            await client.verify()
        await until(lambda: len(set_aside(three)) == 9, "the nine that are still there to be set aside", 60)
        await until(lambda: is_whole(three), "every copy to be right again", 60)
        await client.verify()
        assert client.ledger.wrong == [] and client.ledger.failures == {}
    assert three.query("SELECT 1 FROM replicas WHERE state = 'suspect'") == []


def set_aside(cluster: Cluster) -> list[Path]:
    return [path for node in cluster.nodes for shard in node.shards for path in shard.glob("quarantine/*")]


async def test_wiped_shard_is_whole_again_in_time(three: Cluster) -> None:
    async with LedgerClient([three.url], retries=1) as client:
        shard, uploads = three.nodes[0].shards[0], count()

        async def upload() -> None:
            number = next(uploads)
            assert await client.put(f"generic-local/{number}", b"%d" % number)

        while len(list(shard.glob("blobs/*/*"))) < 200:
            await asyncio.gather(*(upload() for _ in range(25)))
        for directory in (shard / "blobs").iterdir():
            shutil.rmtree(directory)
        await until(lambda: three.query("SELECT 1 FROM events WHERE kind = 'absent'") != [], "it to be noticed", 30)
        await until(lambda: is_whole(three), "every copy to be right again", 90)
        await client.verify()
        assert client.ledger.wrong == []


async def test_last_copies_are_kept_and_a_re_upload_heals(three: Cluster) -> None:
    body = b"precious" * 400_000
    three.set_setting("judge_interval_seconds", 0.3)
    async with LedgerClient([three.url], retries=0) as client:
        assert await client.put("generic-local/first", body)
        copies = next(iter(three.replicas_on_disk().values()))
        for _, path in copies:
            flip_bit(path)
        assert not await client.get("generic-local/first")
        await until(lambda: sum(node.log.read_text().count(": last") for node in three.nodes) == 2, "the verdicts", 30)
        assert all(path.exists() for _, path in copies), "they stay where they are"
        assert await client.put("generic-local/second", body)
        await client.verify()
        three.set_setting("judge_again_seconds", 0)
        await until(lambda: len(set_aside(three)) == 2, "the bad copies to be set aside", 30)
        await until(lambda: is_whole(three), "every copy to be right again", 60)
        await client.verify()
        assert client.ledger.wrong == []


async def test_scrub_finds_what_nobody_reads(three: Cluster) -> None:
    async with LedgerClient([three.url], retries=0) as client:
        assert await client.put("generic-local/unread", b"unread" * 100_000)
        flip_bit(next(iter(three.replicas_on_disk().values()))[0][1])
        # The first passes may be over; an operator asks for the next ones.
        direct(three, "POST", "jobs/scrub/run")
        found = "SELECT 1 FROM events WHERE kind = 'quarantine'"
        await until(lambda: three.query(found) != [], "the scrub to find it", 30)
        await until(lambda: is_whole(three), "every copy to be right again", 60)
        assert three.query("SELECT 1 FROM repair_queue") == []
