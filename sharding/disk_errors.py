"""What an errno on a shard means. The one table; everything not named in it is ``ShardUnavailable``.

============================  =================  =================  ==================
errno                         reading a replica  writing, removing  opening directories
============================  =================  =================  ==================
ENOENT                        ReplicaMissing     unavailable        see ``ShardFiles``
ELOOP (a planted link)        ReplicaCorrupt     unavailable        unavailable
EIO, EUCLEAN, EBADMSG,        ReplicaCorrupt,    unavailable        unavailable
ENODATA, EILSEQ, EREMOTEIO    if the disk lives
ENOSPC, EDQUOT                unavailable        ShardFull          unavailable
EROFS                         unavailable        ShardRefused       unavailable
EFBIG, EEXIST                 unavailable        ShardRefused       unavailable
ESTALE, EACCES, EMFILE, ...   unavailable        unavailable        unavailable
============================  =================  =================  ==================

Who reads a replica takes a directory that a living disk cannot give back as it takes such a file.

A disk remounted read-only refuses writes for good and still reads well, so EROFS must not open the
circuit of its reads. ESTALE and EACCES say that we could not look: unknown is not absent.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.model import ShardId

Verdicts = Mapping[int, type[ShardError]]

MEDIUM_ERRNOS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO)
"""What file systems and block devices say of bytes they cannot give back."""

READING: Verdicts = {
    errno.ENOENT: ReplicaMissing,
    errno.ELOOP: ReplicaCorrupt,
    **dict.fromkeys(MEDIUM_ERRNOS, ReplicaCorrupt),
}
WRITING: Verdicts = {
    errno.ENOSPC: ShardFull,
    errno.EDQUOT: ShardFull,
    errno.EROFS: ShardRefused,
    errno.EFBIG: ShardRefused,
    errno.EEXIST: ShardRefused,
}
LOOKING: Verdicts = {}


def shard_error(shard: ShardId, verdicts: Verdicts, doing: str, error: OSError) -> ShardError:
    """Return the ``ShardError`` that ``error`` means while ``doing`` something on ``shard``."""
    kind = verdicts.get(error.errno or 0, ShardUnavailable)
    return kind(shard, f"{doing}: {error.strerror or error}")


@contextmanager
def translated(shard: ShardId, verdicts: Verdicts, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` of the body into the ``ShardError`` it means."""
    try:
        yield
    except OSError as error:
        raise shard_error(shard, verdicts, doing, error) from error
