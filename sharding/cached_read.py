"""Reads files as far as memory has them, without ever waiting for a disk: on the event loop, that is.

A hop to a thread and back costs five times what such a read does. The path is walked in the kernel's cache of
names alone (``openat2`` with RESOLVE_CACHED), the bytes are taken from the page cache alone (RWF_NOWAIT), and the
time of access is left as it is. Where anything is missing, or the kernel or the file system offers no such thing,
there is no answer, and the caller goes to a thread.
"""

from __future__ import annotations

import ctypes
import os
import stat
from contextlib import suppress

SYS_OPENAT2 = 437
RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_CACHED = 0x04, 0x08, 0x20
OPEN_CACHED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)
READ_NOWAIT = getattr(os, "RWF_NOWAIT", 0)

LOCAL_FILE_SYSTEMS = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0xF2F52010, 0x01021994})
"""ext4, XFS, Btrfs, ZFS, F2FS, tmpfs (statfs(2)): others, such as FUSE's, may ask somebody to open a file."""
STATFS_BYTES = 256


class OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


HOW = OpenHow(OPEN_CACHED, 0, RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_CACHED)
# It waits for nothing, so it need not let go of the interpreter's lock.
LIBC = ctypes.PyDLL(None)
OPENAT2 = LIBC.syscall
OPENAT2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
OPENAT2.restype = ctypes.c_long


def never_waits(directory: int) -> bool:
    """Say whether the file system of an open directory keeps the promise of ``read_cached``."""
    found = ctypes.create_string_buffer(STATFS_BYTES)
    if not READ_NOWAIT or LIBC.fstatfs(directory, found) != 0:
        return False
    return (ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF) in LOCAL_FILE_SYSTEMS


def read_cached(directory: int, path: str, *, size: int, offset: int, length: int) -> bytearray | None:
    """Return ``length`` bytes from ``offset`` of a regular file of ``size`` bytes below ``directory``.

    None says nothing about the file, but that it cannot be read so without waiting. Never blocks.
    """
    file: int = OPENAT2(SYS_OPENAT2, directory, path.encode(), ctypes.byref(HOW), ctypes.sizeof(HOW))
    if file < 0:
        return None
    try:
        found = os.fstat(file)
        if found.st_size != size or not stat.S_ISREG(found.st_mode):
            return None
        data = bytearray(length)
        with suppress(OSError):
            if os.preadv(file, (data,), offset, READ_NOWAIT) == length:
                return data
        return None
    finally:
        os.close(file)
