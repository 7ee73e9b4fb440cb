"""Named places in the protocols at which a test lets a node die, as in a power cut. In production none is armed.

The environment arms one, and has to say so twice: ``HOLDFAST_TEST_CRASH_AT=NAME`` or ``NAME:N``, for the N-th
time the place is passed, beside ``HOLDFAST_TEST_MAY_CRASH=1``. A node that finds only the first does not start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

AT, ALLOWED = "HOLDFAST_TEST_CRASH_AT", "HOLDFAST_TEST_MAY_CRASH"

NAMES = frozenset(
    {
        "upload.staged",  # every byte is in tmp/, nothing is durable
        "upload.synced",  # one copy is durable in tmp/
        "upload.renamed",  # it has its name, which is not durable
        "upload.durable",  # all copies are durable, Postgres knows nothing
        "upload.committed",  # Postgres knows, the client does not
        "explode.spooled",  # an archive lies whole on a shard, in a file without a name
        "explode.member",  # some of its members are artifacts
        "explode.durable",  # all are durable, Postgres knows nothing
        "explode.committed",  # Postgres knows all, the client does not
        "repair.copied",  # durable copies that no row refers to
        "repair.settled",  # rows refer to them; what was not needed still has its files
        "move.copied",
        "move.flipped",
        "transfer.page",  # a page of a tree is copied or moved, the rest is not
        "transfer.walked",  # all is moved, the folders it lay in are still there
        "gc.collecting",  # in office, before the transaction
        "gc.collected",  # rows are gone, files are on the removal list
        "removal.unlinked",  # a file is gone, and still listed
        "quarantine.condemned",  # the order is written, the file not moved
        "quarantine.moved",  # the file is moved, nobody has noted it
    }
)


class CrashPointRefused(Exception):
    """The environment names a place to crash at, and must not, or does not know it."""


_name: str | None = None
_passings_left = 0


def arm(environment: Mapping[str, str]) -> None:
    """Arm the place that ``environment`` names, if any. Raises ``CrashPointRefused``."""
    global _name, _passings_left
    wanted = environment.get(AT)
    if not wanted:
        return
    name, _, count = wanted.partition(":")
    if environment.get(ALLOWED) != "1":
        raise CrashPointRefused(f"{AT} is set: this node would kill itself. Remove it; only tests set it.")
    if name not in NAMES or not (count or "1").isdigit():
        raise CrashPointRefused(f"{AT}={wanted}: there is no such place; there are {', '.join(sorted(NAMES))}")
    _name, _passings_left = name, int(count or 1)


def crash_point(name: str) -> None:
    """End this process here, without a word to anybody, when ``name`` is armed and its turn has come."""
    global _passings_left
    if _name is None or name != _name:
        return
    _passings_left -= 1
    if _passings_left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
