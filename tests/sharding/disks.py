"""Disks of this test's own, which can be filled, killed and unmounted. They need root; without it tests skip."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.tools import skip

EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_SYNC = 1
FIEMAP_HEAD = struct.Struct("QQIIII")
FIEMAP_EXTENT = struct.Struct("QQQ32x")
EXTENTS_MAX = 16
CGROUPS = Path("/sys/fs/cgroup")
BLKIO = CGROUPS / "blkio"


@contextmanager
def mounted_tmpfs(path: Path, size_kib: int) -> Iterator[Path]:
    """Mount a file system of ``size_kib`` at ``path``, or skip the test."""
    with _mounted(path, ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(path)]):
        yield path


@contextmanager
def mounted_ext4(path: Path, size_mib: int = 16) -> Iterator[Path]:
    """Mount an ext4 in a file beside ``path``, or skip the test."""
    image = path.with_suffix(".img")
    make_ext4(image, size_mib)
    with remounted_ext4(path, image):
        yield path


def make_ext4(image: Path, size_mib: int, *options: str) -> None:
    """Make the file ``image`` an ext4, by ``options`` of mkfs.ext4, or skip the test."""
    if shutil.which("mkfs.ext4") is None:
        skip("mkfs.ext4 is not installed: no file system can be killed here")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, str(image)], check=True, capture_output=True)


@contextmanager
def remounted_ext4(path: Path, image: Path) -> Iterator[Path]:
    """Mount the ext4 in the file ``image`` at ``path``, or skip the test."""
    with _mounted(path, ["mount", "-o", "loop", str(image), str(path)]):
        yield path


def kill_file_system(path: Path) -> None:
    """Make the ext4 at ``path`` answer EIO, as a disk does that dies."""
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
    finally:
        os.close(directory)


def remount_read_only(path: Path) -> None:
    """Remount a file system read-only, between two files that are being written."""
    for _ in range(500):
        if subprocess.run(["mount", "-o", "remount,ro", str(path)], capture_output=True).returncode == 0:
            return
    raise AssertionError(f"{path} is always being written to")


def remount_writable(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True, capture_output=True)


def take_every_block(image: Path) -> None:
    """Give the image all its room now, also where mkfs.ext4 left holes."""
    file = os.open(image, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, os.fstat(file).st_size)
    finally:
        os.close(file)


def mount_image(image: Path, path: Path) -> None:
    """Mount the ext4 in ``image`` at ``path`` again, after ``unmount``."""
    subprocess.run(["mount", "-o", "loop", str(image), str(path)], check=True, capture_output=True)


def unmount(path: Path) -> None:
    """Unmount what is at ``path`` and is in use no more."""
    subprocess.run(["umount", str(path)], check=True, capture_output=True)


def give_up_free_blocks(path: Path) -> None:
    """Make holes of the free blocks in the image below the ext4 at ``path``, so that writing there needs room anew."""
    subprocess.run(["fstrim", str(path)], check=True, capture_output=True)


def bytes_on_device(path: Path) -> tuple[int, int]:
    """Return where the bytes of a file or a directory begin on its device, and where they end."""
    file = os.open(path, os.O_RDONLY)
    try:
        request = FIEMAP_HEAD.pack(0, 2**64 - 1, FIEMAP_SYNC, 0, EXTENTS_MAX, 0) + bytes(
            EXTENTS_MAX * FIEMAP_EXTENT.size
        )
        found = fcntl.ioctl(file, FS_IOC_FIEMAP, request)
    finally:
        os.close(file)
    count = FIEMAP_HEAD.unpack_from(found)[3]
    extents = [FIEMAP_EXTENT.unpack_from(found, FIEMAP_HEAD.size + n * FIEMAP_EXTENT.size) for n in range(count)]
    return min(extent[1] for extent in extents), max(extent[1] + extent[2] for extent in extents)


def forget_cached(path: Path) -> None:
    """Make the next read of a file come from its disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


@contextmanager
def throttled(path: Path, process: int, bytes_per_second: int) -> Iterator[None]:
    """Let ``process`` read and write what is at ``path`` no faster than this, or skip the test."""
    parent, limits = throttle_of(path.stat().st_dev, bytes_per_second)
    home = Path(f"/proc/{process}/cgroup").read_text()
    group = parent / f"holdfast-test-{process}"
    group.mkdir()
    try:
        for file, text in limits:
            (group / file).write_text(text)
        (group / "cgroup.procs").write_text(str(process))
        yield
    finally:
        for one in (group / "cgroup.procs").read_text().split():
            (home_in(parent, home) / "cgroup.procs").write_text(one)
        group.rmdir()


def throttle_of(device: int, bytes_per_second: int) -> tuple[Path, list[tuple[str, str]]]:
    """Return below which control group a device can be slowed down, and what says so in which files of a new one."""
    name = f"{os.major(device)}:{os.minor(device)}"
    if os.access(BLKIO, os.W_OK):
        return BLKIO, [
            (f"blkio.throttle.{verb}_bps_device", f"{name} {bytes_per_second}") for verb in ("read", "write")
        ]
    try:
        # The second version of control groups has one tree, whose root hands its controllers down when told to.
        (CGROUPS / "cgroup.subtree_control").write_text("+io")
    except OSError as error:
        skip(f"no disk can be slowed down here: neither {BLKIO} nor io.max below {CGROUPS} can be used ({error})")
    return CGROUPS, [("io.max", f"{name} rbps={bytes_per_second} wbps={bytes_per_second}")]


def home_in(parent: Path, groups: str) -> Path:
    """Return the group below ``parent`` that a process was in, by the text of its ``/proc/<pid>/cgroup``."""
    wanted = "blkio" if parent == BLKIO else ""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if wanted in controllers.split(","):
            return parent / path.lstrip("/")
    return parent


def fill_up(ballast: Path) -> None:
    """Take every free byte of the file system that ``ballast`` is on; once more, what has become free since."""
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def detach(path: Path) -> None:
    """Unmount what is at ``path`` though it is in use, as ``umount -l`` does."""
    subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


@contextmanager
def _mounted(path: Path, command: list[str]) -> Iterator[None]:
    if os.geteuid() != 0:
        skip("mounting a disk for this test needs root")
    if shutil.which("mount") is None:
        skip("mount is not installed: no disk can be mounted here")
    path.mkdir()
    mounting = subprocess.run(command, capture_output=True, text=True)
    if mounting.returncode:
        skip(f"no disk can be mounted here: {mounting.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)
