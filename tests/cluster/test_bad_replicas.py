"""Replicas that are not what they should be: clients get the right bytes from another, and repair is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, curl, status, until


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def remove(path: Path) -> None:
    path.unlink()


FAULTS = [flip_bit, truncate, grow, remove]


@pytest.mark.parametrize("fault", FAULTS)
async def test_bad_replica_is_never_served_and_is_reported(three: Cluster, fault: Callable[[Path], None]) -> None:
    async with LedgerClient([three.url], retries=0) as client:
        for number, size in enumerate((10, 50_000, 3_500_000)):
            assert await client.put(f"generic-local/{number}", bytes([number + 1]) * size)
        for copies in three.replicas_on_disk().values():
            fault(copies[0][1])
        # Each node reads its own copy first, so each bad one is read by somebody.
        for node in three.nodes:
            client.urls = [node.url]
            await client.verify()
        assert client.ledger.wrong == []
        assert client.ledger.failures == {}
    await until(lambda: status(three.live)["repair_queue"] == 3, "three repairs to be queued", 10)


@pytest.mark.parametrize("fault", FAULTS)
async def test_re_upload_heals_content_whose_every_copy_is_bad(three: Cluster, fault: Callable[[Path], None]) -> None:
    body = b"precious" * 400_000
    async with LedgerClient([three.url], retries=0) as client:
        assert await client.put("generic-local/first", body)
        for _, path in next(iter(three.replicas_on_disk().values())):
            fault(path)
        assert await client.put("generic-local/second", body)
        await client.verify()
    assert client.ledger.wrong == []


async def test_blob_without_any_good_copy_is_unavailable_not_absent(three: Cluster) -> None:
    async with LedgerClient([three.url], retries=0) as client:
        assert await client.put("generic-local/only", b"only" * 1000)
        for _, path in next(iter(three.replicas_on_disk().values())):
            path.unlink()
    for node in three.nodes:
        assert curl(f"{node.url}/artifactory/generic-local/only")[0] == 503
