"""Shared fsyncs: who waits for which, and who fails with whom."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from typing import Any

import pytest

from sharding.directory_sync import DirectorySync


class Stepper:
    """A disk that syncs nothing by itself: the test ends each fsync run."""

    def __init__(self) -> None:
        self.runs: list[tuple[tuple[str, ...], asyncio.Future[Any]]] = []
        self.closed = False

    def sync_all(self, directories: tuple[str, ...]) -> asyncio.Future[Any]:
        if self.closed:
            raise RuntimeError("closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.runs.append((directories, future))
        return future

    async def end(self, run: int, failures: Mapping[str, OSError] | None = None) -> None:
        self.runs[run][1].set_result(failures or {})
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def disk() -> Stepper:
    return Stepper()


@pytest.fixture
def directories(disk: Stepper) -> DirectorySync:
    return DirectorySync(disk.sync_all)


async def begin(directories: DirectorySync, *names: str) -> asyncio.Task[None]:
    task = asyncio.create_task(directories.sync(names))
    await settle()
    return task


async def test_those_who_come_during_an_fsync_wait_for_the_next_and_share_it(
    disk: Stepper, directories: DirectorySync
) -> None:
    first = await begin(directories, "ab")
    late = [await begin(directories, "ab") for _ in range(5)]
    other = await begin(directories, "cd")
    await disk.end(0)
    assert first.done() and not any(task.done() for task in late)
    assert [names for names, _ in disk.runs] == [("ab",), ("ab", "cd")]
    await disk.end(1)
    await asyncio.gather(*late, other)
    assert len(disk.runs) == 2


async def test_nothing_is_synced_when_there_is_nothing_to_sync(disk: Stepper, directories: DirectorySync) -> None:
    await directories.sync(())
    assert disk.runs == []


async def test_several_directories_are_all_waited_for(disk: Stepper, directories: DirectorySync) -> None:
    task = await begin(directories, "ab", ".")
    assert disk.runs[0][0] == ("ab", ".")
    await disk.end(0, {".": OSError(errno.EIO, "Input/output error")})
    with pytest.raises(OSError, match="Input/output"):
        await task


async def test_failure_fails_all_who_waited_and_all_who_joined_meanwhile(
    disk: Stepper, directories: DirectorySync
) -> None:
    waiting = [await begin(directories, "ab")]
    waiting += [await begin(directories, "ab") for _ in range(2)]
    other = await begin(directories, "cd")
    await disk.end(0, {"ab": OSError(errno.EIO, "Input/output error")})
    for task in waiting:
        with pytest.raises(OSError) as failure:
            await task
        assert failure.value.errno == errno.EIO
    assert [names for names, _ in disk.runs] == [("ab",), ("cd",)]
    await disk.end(1)
    await other


async def test_directory_is_synced_again_for_those_who_come_after_a_failure(
    disk: Stepper, directories: DirectorySync
) -> None:
    first = await begin(directories, "ab")
    await disk.end(0, {"ab": OSError(errno.EIO, "Input/output error")})
    with pytest.raises(OSError):
        await first
    second = await begin(directories, "ab")
    await disk.end(1)
    await second


async def test_waiter_that_is_cancelled_takes_nobody_with_it(disk: Stepper, directories: DirectorySync) -> None:
    first, second, third = [await begin(directories, "ab") for _ in range(3)]
    first.cancel()
    third.cancel()
    await disk.end(0)
    await disk.end(1)
    await second
    assert first.cancelled() and third.cancelled()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "Input/output error")])
async def test_run_that_raises_fails_its_waiters_and_the_next_run_begins(
    disk: Stepper, directories: DirectorySync, error: Exception
) -> None:
    first = await begin(directories, "ab")
    other = await begin(directories, "cd")
    disk.runs[0][1].set_exception(error)
    await settle()
    with pytest.raises(OSError):
        await first
    await disk.end(1)
    await other


async def test_waiters_fail_when_the_disk_is_closed(disk: Stepper, directories: DirectorySync) -> None:
    first = await begin(directories, "ab")
    late = await begin(directories, "ab")
    disk.closed = True
    await disk.end(0)
    await first
    with pytest.raises(OSError, match="closed"):
        await late
    with pytest.raises(OSError, match="closed"):
        await directories.sync(["cd"])
