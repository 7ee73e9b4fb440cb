"""What is on the disk, and in which order, before the local shard says that a blob is stored."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sharding.errors import ShardUnavailable
from sharding.files import fan_out_of
from sharding.local import LocalShard
from sharding.model import BlobName
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, make_generation, make_name, replica_files, stage_all
from tests.tools import skip

Steps = list[tuple[str, str]]


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def shard(shard_root: Path) -> AsyncIterator[LocalShard]:
    async with open_at(shard_root) as opened:
        yield opened


def path_of(file: int) -> str:
    return os.readlink(f"/proc/self/fd/{file}")


@pytest.fixture
def steps(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Every step that matters, in the order in which it *ended*, with paths relative to the shard."""
    noted: Steps = []

    def note(step: str, path: str) -> None:
        noted.append((step, os.path.relpath(path, shard_root)))

    def noting_sync(name: str) -> Callable[[int], None]:
        real = getattr(os, name)

        def sync(file: int) -> None:
            path = path_of(file)
            real(file)
            note("sync", path)

        return sync

    def noting_change(name: str, *, by: str, target: int) -> Callable[..., None]:
        real = getattr(os, name)

        def change(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            if by in kwargs:  # everything below the shard is reached through its open directories
                note(name, os.path.join(path_of(kwargs[by]), args[target]))

        return change

    monkeypatch.setattr(os, "fsync", noting_sync("fsync"))
    monkeypatch.setattr(os, "fdatasync", noting_sync("fdatasync"))
    monkeypatch.setattr(os, "rename", noting_change("rename", by="dst_dir_fd", target=1))
    monkeypatch.setattr(os, "unlink", noting_change("unlink", by="dir_fd", target=0))
    monkeypatch.setattr(os, "mkdir", noting_change("mkdir", by="dir_fd", target=0))
    return noted


def fan_out(name: BlobName) -> str:
    return f"blobs/{fan_out_of(str(name))}"


async def test_put_syncs_file_and_every_new_directory_before_it_returns(shard: LocalShard, steps: Steps) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    assert steps == [
        ("sync", f"tmp/{name.generation}"),
        ("mkdir", fan_out(name)),
        ("rename", f"{fan_out(name)}/{name}"),
        ("sync", fan_out(name)),
        ("sync", "blobs"),
    ]


async def test_put_syncs_file_and_directory_when_the_directory_is_old(shard: LocalShard, steps: Steps) -> None:
    first = make_name(b"data")
    await shard.put(first, b"data")
    steps.clear()
    name = BlobName(first.sha256, make_generation())
    await shard.put(name, b"data")
    assert steps == [
        ("sync", f"tmp/{name.generation}"),
        ("rename", f"{fan_out(name)}/{name}"),
        ("sync", fan_out(name)),
    ]


async def test_commit_syncs_file_and_every_new_directory_before_it_returns(shard: LocalShard, steps: Steps) -> None:
    name, staged = await stage_all(shard, b"data")
    assert steps == []
    await staged.commit(name.sha256, block_digests(b"data"))
    assert steps == [
        ("sync", f"tmp/{name.generation}"),
        ("mkdir", fan_out(name)),
        ("rename", f"{fan_out(name)}/{name}"),
        ("sync", fan_out(name)),
        ("sync", "blobs"),
    ]


async def test_delete_syncs_the_directory_before_it_returns(shard: LocalShard, steps: Steps) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    steps.clear()
    await shard.delete(name)
    assert steps == [("unlink", f"{fan_out(name)}/{name}"), ("sync", fan_out(name))]


async def test_delete_repeated_syncs_again_though_the_file_is_gone(shard: LocalShard, steps: Steps) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    await shard.delete(name)
    steps.clear()
    await shard.delete(name)
    assert steps == [("sync", fan_out(name))]


async def test_start_syncs_the_directories_a_killed_owner_left(shard_root: Path, steps: Steps) -> None:
    async with open_at(shard_root):
        pass
    steps.clear()
    async with open_at(shard_root):
        assert ("sync", "blobs") in steps


async def test_put_into_a_directory_that_another_put_makes_waits_for_its_parent(
    shard: LocalShard, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_name(b"data")
    second = BlobName(first.sha256, make_generation())
    await asyncio.gather(shard.put(first, b"data"), shard.put(second, b"data"))
    last_rename = max(n for n, (step, _) in enumerate(steps) if step == "rename")
    assert ("sync", "blobs") in steps
    assert ("sync", fan_out(first)) in steps[last_rename:]


async def test_commit_is_never_repeated_as_durable_after_a_failed_fdatasync(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, staged = await stage_all(shard, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(ShardUnavailable):
            await staged.commit(name.sha256, block_digests(b"data"))
    with pytest.raises(ShardUnavailable):  # the kernel would now say that all is well
        await staged.commit(name.sha256, block_digests(b"data"))
    await staged.abort()
    assert os.listdir(shard_root / "tmp") == []
    assert replica_files(shard_root) == []


async def test_put_fails_and_leaves_nothing_when_a_directory_cannot_be_synced(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_name(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(ShardUnavailable):
            await shard.put(name, b"data")
    await shard.close()
    assert replica_files(shard_root) == []


async def test_parent_is_synced_by_the_next_put_when_its_first_sync_failed(
    shard: LocalShard, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_name(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(ShardUnavailable):
            await shard.put(name, b"data")
    steps.clear()
    await shard.put(BlobName(name.sha256, make_generation()), b"data")
    assert ("sync", "blobs") in steps


async def test_directory_is_opened_for_its_sync_before_a_put_changes_it(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed write-back is told once to each who has the directory open: who opens it later hears nothing."""
    name = make_name(b"data")
    await shard.put(BlobName(name.sha256, make_generation()), b"data")
    taken: list[int] = []
    rename, fsync = os.rename, os.fsync

    def noting_rename(*args: Any, dst_dir_fd: int, **kwargs: Any) -> None:
        taken.append(dst_dir_fd)
        rename(*args, dst_dir_fd=dst_dir_fd, **kwargs)

    def noting_fsync(file: int) -> None:
        taken.append(file)
        fsync(file)

    monkeypatch.setattr(os, "rename", noting_rename)
    monkeypatch.setattr(os, "fsync", noting_fsync)
    await shard.put(name, b"data")
    renamed_in, synced = taken
    assert renamed_in == synced


async def test_concurrent_commits_share_the_sync_of_their_directory(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_name(b"data")
    await shard.put(first, b"data")
    syncs: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    real = os.fsync

    def slow_sync(file: int) -> None:
        syncs.append(path_of(file))
        begun.set()
        go_on.wait(10)
        real(file)

    monkeypatch.setattr(os, "fsync", slow_sync)
    staged = [await stage_all(shard, b"data") for _ in range(12)]
    blocks = block_digests(b"data")
    putting = [asyncio.create_task(one.commit(name.sha256, blocks)) for name, one in staged]
    assert await asyncio.to_thread(begun.wait, 10)
    async with asyncio.timeout(10):
        while os.listdir(shard_root / "tmp"):  # until all are renamed
            await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(*putting)
    assert len(syncs) <= 3  # one for the first, one for all who came meanwhile, one for a straggler


def failing(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, make_name, stage_all

async def store(root):
    async with open_at(root) as shard:
        name = make_name(b"data")
        await shard.put(name, b"data")
        os.write(1, f"ACKNOWLEDGED {name}\\n".encode())
        name, staged = await stage_all(shard, b"more")
        await staged.commit(name.sha256, block_digests(b"more"))
        os.write(1, f"ACKNOWLEDGED {name}\\n".encode())

asyncio.run(store(Path(sys.argv[1])))
"""


def test_the_kernel_sees_sync_rename_sync_before_the_acknowledgement(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        skip("strace is not installed: the order of system calls is checked by the other tests only")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-s", "200", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write"]
    ran = subprocess.run(
        [*command, "-o", str(trace), sys.executable, "-c", SCRIPT, str(tmp_path / "shard")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    if "ptrace" in ran.stderr and not ran.stdout:
        skip("strace may not trace processes here")
    names = re.findall(r"ACKNOWLEDGED (\S+)", ran.stdout)
    assert len(names) == 2, ran.stderr
    calls = trace.read_text()
    for name in names:
        generation = name.split(".", 1)[1]
        directory = f"/shard/blobs/{fan_out_of(name)}"
        synced = position(calls, rf"fdatasync\(\d+<[^>]*/shard/tmp/{generation}>")
        renamed = position(calls, rf"rename\w*\(.*{re.escape(name)}")
        directory_synced = position(calls, rf"fsync\(\d+<[^>]*{directory}>", renamed)
        acknowledged = position(calls, rf"write\(1<.*ACKNOWLEDGED {re.escape(name)}")
        assert synced < renamed < directory_synced < acknowledged
        if name == names[0]:
            # The directory was made for this one.
            assert position(calls, r"fsync\(\d+<[^>]*/shard/blobs>", renamed) < acknowledged


def position(text: str, pattern: str, start: int = 0) -> int:
    found = re.compile(pattern).search(text, start)
    assert found, f"no {pattern} in the trace"
    return found.start()
