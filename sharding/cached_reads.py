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
        file = self.open(path, size)
        if file is None:
            return None
        try:
            return self.read_opened(file, offset, length)
        finally:
            os.close(file)

    def open(self, path: str, size: int) -> int | None:
        """Return a file of exactly ``size`` bytes, open, if its name is in memory; the caller closes it.

        None as for ``read``.
        """
        found = self._open(path)
        if found is None:
            return None
        file, its_size = found
        if its_size == size:
            return file
        os.close(file)
        return None

    def read_opened(self, file: int, offset: int, length: int) -> memoryview | None:
        """Return ``length`` bytes from ``offset`` of what ``open`` gave, if memory has them; None as for ``read``."""
        data = room_for(length)
        try:
            return data if os.preadv(file, (data,), offset, os.RWF_NOWAIT) == length else None
        except OSError as error:
            self._note(error.errno)
            return None

    def size(self, path: str) -> int | None:
        """Return the size of a regular file if its name is in memory, and a living file system lets it be opened.

        None as for ``read``.
        """
        found = self._open(path)
        if found is None:
            return None
        file, size = found
        os.close(file)
        return size

    def _open(self, path: str) -> tuple[int, int] | None:
        """Return a regular file, open, and its size."""
        if not self._possible:
            return None
        file: int = self._syscall(OPENAT2, self._directory, path.encode(), self._how_at, ctypes.sizeof(OpenHow))
        if file < 0:
            self._note(ctypes.get_errno())
            return None
        try:
            found = os.fstat(file)
        except OSError:
            os.close(file)
            return None
        if stat.S_ISREG(found.st_mode):
            return file, found.st_size
        os.close(file)
        return None

    def _note(self, number: int | None) -> None:
        """Give all of this up, where an error says that it will never work."""
        self._possible = number not in NOT_POSSIBLE


def is_local(libc: ctypes.PyDLL, directory: int) -> bool:
    """Say whether what an open directory lies on keeps names and pages itself."""
    found = ctypes.create_string_buffer(STATFS_BYTES)
    if libc.fstatfs(directory, found) != 0:
        return False
    return (ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF) in LOCAL_FILE_SYSTEMS
