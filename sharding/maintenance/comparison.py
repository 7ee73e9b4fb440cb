"""The rows and the files of one shard side by side, in the order of generations, a page at a time.

First everything on the shard is listed, then the rows are read. So a file that is listed and has no row
may be an upload under way, and a row without a listed file may be newer than the listing: whoever acts
on what is found looks once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from sharding.errors import ShardUnavailable
from sharding.listing import FoundReplica, OddEntry, ShardListing
from sharding.model import BlobName, Generation, ShardId
from sharding.shard import Auditable

FIRST = Generation(UUID(int=0))
LAST = Generation(UUID(int=(1 << 128) - 1))
PAGE = 2_000
FILES_MAX = 2 * PAGE
DIRECTORIES_PER_STEP = 8
LISTING_SECONDS = 120.0
"""A disk that takes longer to list a directory does not answer."""


class RowState(StrEnum):
    """What the rows say of a file."""

    LIVE = "live"
    SUSPECT = "suspect"
    CONDEMNED = "condemned"
    """No blob's, and on its way to quarantine."""
    ASIDE = "aside"
    """No blob's, and moved to quarantine."""
    REMOVAL = "removal"
    """No blob's, and to be removed after a while."""


@dataclass(frozen=True, slots=True)
class Row:
    """A file that the rows know. ``sha256`` is empty, and ``size`` None, where they do not say."""

    generation: Generation
    state: RowState
    sha256: bytes
    size: int | None

    @property
    def name(self) -> BlobName:
        return BlobName(self.sha256, self.generation)


class RowSource(Protocol):
    async def known(self, shard: ShardId, after: Generation, count: int) -> list[Row]:
        """Return every file of the shard that the rows know, by generation, from the one after ``after``."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Every row and every file of one range of generations."""

    rows: Sequence[Row]
    files: Sequence[FoundReplica]

    def absent(self) -> list[Row]:
        """Return live rows without a file of their name; the suspect ones are judged by themselves."""
        found = {file.name for file in self.files}
        return [row for row in self.rows if row.state is RowState.LIVE and row.name not in found]

    def present(self) -> list[Row]:
        """Return live rows with a file of their name."""
        found = {file.name for file in self.files}
        return [row for row in self.rows if row.state is RowState.LIVE and row.name in found]

    def strays(self) -> list[FoundReplica]:
        """Return files whose generation no row knows, one of each generation."""
        known = {row.generation for row in self.rows}
        return list({f.name.generation: f for f in reversed(self.files) if f.name.generation not in known}.values())

    def misnamed(self) -> list[FoundReplica]:
        """Return files whose generation a row, or a stray, has with another content."""
        known = {row.generation: row.sha256 for row in self.rows}
        known |= {file.name.generation: file.name.sha256 for file in self.strays()}
        return [file for file in self.files if known[file.name.generation] not in (b"", file.name.sha256)]

    def returned(self) -> list[FoundReplica]:
        """Return files that had been moved to quarantine and are back in their place."""
        aside = {row.generation: row.sha256 for row in self.rows if row.state is RowState.ASIDE}
        return [file for file in self.files if aside.get(file.name.generation) in (b"", file.name.sha256)]


class Comparison:
    """One comparison of a shard: ``list_some`` until it is False, then ``next_page`` until it is None. Close it."""

    def __init__(self, shard: Auditable, source: RowSource) -> None:
        self.shard = shard
        self._source = source
        self._listing: ShardListing = shard.listing()
        self._files: Iterator[FoundReplica] | None = None
        self._ahead: FoundReplica | None = None
        self._after = FIRST

    def close(self) -> None:
        self._listing.close()

    @property
    def oddities(self) -> Sequence[OddEntry]:
        return self._listing.oddities

    @property
    def oddities_beyond(self) -> int:
        """How many more oddities there are than are remembered."""
        return self._listing.oddities_beyond

    @property
    def files_listed(self) -> int:
        return self._listing.replicas_count

    async def list_some(self) -> bool:
        """List a few directories more; False when everything is listed. Raises ``ShardUnavailable``."""
        for _ in range(DIRECTORIES_PER_STEP):
            try:
                async with asyncio.timeout(LISTING_SECONDS):
                    if not await self.shard.list_next(self._listing):
                        return False
            except TimeoutError:
                raise ShardUnavailable(self.shard.id, f"listing took longer than {LISTING_SECONDS:g} s") from None
        return True

    async def next_page(self) -> Page | None:
        """Return the next page, None at the end."""
        if self._after == LAST:
            return None
        rows = await self._source.known(self.shard.id, self._after, PAGE)
        until = rows[-1].generation if len(rows) == PAGE else LAST
        files, is_cut = await asyncio.to_thread(self._take_files, until)
        if is_cut:
            # More files than a page holds, of whatever origin: the range ends with the last of them.
            until = files[-1].name.generation
            rows = [row for row in rows if row.generation <= until]
        self._after = until
        return Page(rows, files)

    def _take_files(self, until: Generation) -> tuple[list[FoundReplica], bool]:
        """Return the files up to ``until``, and whether a page could not hold them all."""
        if self._files is None:
            self._files = self._listing.replicas()
            self._ahead = next(self._files, None)
        taken: list[FoundReplica] = []
        while self._ahead is not None and self._ahead.name.generation <= until:
            # Several of one generation stay together: the range is told by generations.
            if len(taken) >= FILES_MAX and self._ahead.name.generation != taken[-1].name.generation:
                return taken, True
            taken.append(self._ahead)
            self._ahead = next(self._files, None)
        return taken, False
