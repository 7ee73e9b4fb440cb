"""Reads that the page cache answers at once, or nobody.

The way to a disk's thread and back costs several times what it takes to copy a small file out of memory. Linux can
be asked to look a path up (``RESOLVE_CACHED`` of openat2(2)) and to read (``RWF_NOWAIT`` of preadv2(2)) only as far as
it need not wait for a disk. Where the kernel or the file system cannot do that, nothing is ever found here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from sharding.room import room_for

OPENAT2 = 437
"""The number of the system call, the same on every processor; the C library has no function for it."""

RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_CACHED = 0x04, 0x08, 0x20
LOCAL_FILE_SYSTEMS = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0xF2F52010, 0x01021994})
"""ext4, XFS, Btrfs, ZFS, F2FS, tmpfs (statfs(2)): others, such as NFS, may ask somebody before they open a file."""
STATFS_BYTES = 256

NOT_POSSIBLE = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP})
"""What says that this kernel, its sandbox or the file system will never do it."""


class OpenHow(ctypes.Structure):
    """``struct open_how``."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class CachedReads:
    """Opens and reads files below ``directory`` without ever waiting for its disk, so the event loop may do it."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        # Not the usual CDLL: what never waits need not release the interpreter's lock, and take it again.
        libc = ctypes.PyDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
        # The time of access stays as it is: to note it may wait for the file system's journal.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)
        self._how = OpenHow(flags, 0, RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_CACHED)
        self._how_at = ctypes.addressof(self._how)
        self._possible = is_local(libc, directory)

    def read(self, path: str, size: int, offset: int, length: int) -> memoryview | None:
        """Return ``length`` bytes from ``offset`` of a file of exactly ``size`` bytes if all of that is in memory.

        None says nothing about the file: whoever wants to know more must be ready to wait.
        """
        if not self._possible:
            return None
        try:
            file = self._open(path)
            try:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                    return None
                data = room_for(length)
                return data if os.preadv(file, (data,), offset, os.RWF_NOWAIT) == length else None
            finally:
                os.close(file)
        except OSError as error:
            self._possible = error.errno not in NOT_POSSIBLE
            return None

    def size(self, path: str) -> int | None:
        """Return the size of a regular file if its name is in memory, and a living file system lets it be opened.

        None as for ``read``.
        """
        if not self._possible:
            return None
        try:
            file = self._open(path)
            try:
                found = os.fstat(file)
            finally:
                os.close(file)
        except OSError as error:
            self._possible = error.errno not in NOT_POSSIBLE
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _open(self, path: str) -> int:
        file: int = self._syscall(OPENAT2, self._directory, path.encode(), self._how_at, ctypes.sizeof(OpenHow))
        if file < 0:
            raise OSError(ctypes.get_errno(), "openat2")
        return file


def is_local(libc: ctypes.PyDLL, directory: int) -> bool:
    """Say whether what an open directory lies on keeps names and pages itself."""
    found = ctypes.create_string_buffer(STATFS_BYTES)
    if libc.fstatfs(directory, found) != 0:
        return False
    return (ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF) in LOCAL_FILE_SYSTEMS
