"""Disks of this test's own, which can be filled, killed and unmounted. They need root; without it tests skip."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools import skip

EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2


@contextmanager
def mounted_tmpfs(path: Path, size_kib: int) -> Iterator[Path]:
    """Mount a file system of ``size_kib`` at ``path``, or skip the test."""
    with _mounted(path, ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(path)]):
        yield path


@contextmanager
def mounted_ext4(path: Path, size_mib: int = 16) -> Iterator[Path]:
    """Mount an ext4 in a file beside ``path``, or skip the test."""
    if shutil.which("mkfs.ext4") is None:
        skip("mkfs.ext4 is not installed: no file system can be killed here")
    image = path.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    with remounted_ext4(path, image):
        yield path


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
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True, capture_output=True)


def remount_writable(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True, capture_output=True)


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
