"""Writing one file around the page cache (O_DIRECT), where memory, place and file system allow it. Every call blocks.

What nobody will read soon is neither copied into the cache nor written back and pushed out of it again.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sharding.model import Buffer
from sharding.room import PAGE_BYTES, is_aligned


class DirectWrites:
    """Whether one open file is written directly. ``is_possible`` says of its file system what is known by now."""

    def __init__(self, file: int) -> None:
        self.is_on = False
        self.is_possible = True
        self._file = file

    def prefer(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset`` directly if that is possible, as usual if not. Raises ``OSError``."""
        self.set(self.is_possible and not offset % PAGE_BYTES and is_aligned(data))

    def set(self, direct: bool) -> None:
        """Write directly from now on, if the file system knows how, or as usual. Raises ``OSError``."""
        if direct is self.is_on:
            return
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.is_possible = False
        else:
            self.is_on = direct

    def forgive(self, error: OSError) -> bool:
        """Go on as usual after ``error``, if direct writing is to blame; say whether."""
        if not self.is_on or error.errno != errno.EINVAL:
            return False
        self.is_possible = False
        self.set(False)
        return True
