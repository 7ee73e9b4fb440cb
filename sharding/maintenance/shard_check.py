"""One comparison of a shard with its rows, in bounded steps. A dry run takes the same path and writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sharding.files import fan_out_of
from sharding.listing import FoundReplica, OddEntry, Oddity
from sharding.maintenance.comparison import Comparison, Page, Row
from sharding.maintenance.found import digest_whole
from sharding.maintenance.leftovers import Leftovers
from sharding.maintenance.presence import DROP_BATCH, look, really_absent
from sharding.maintenance.reconcile_catalogue import CheckOrder, CheckReport, Finding, ReconcileCatalogue
from sharding.model import BlobName
from sharding.shard import Auditable

log = logging.getLogger(__name__)

BATCH = 500
ADOPT_BYTES = 64 << 20


class ShardCheck:
    """Call ``step`` until it is False, then read ``report``. Close it."""

    def __init__(
        self,
        order: CheckOrder,
        shard: Auditable,
        catalogue: ReconcileCatalogue,
        leftovers: Leftovers,
        settle_seconds: float,
    ) -> None:
        self.order = order
        self.report = CheckReport()
        self.done = 0
        self.done_in_step = 0
        self._shard = shard
        self._catalogue = catalogue
        self._leftovers = leftovers
        self._settle_seconds = settle_seconds
        self._comparison = Comparison(shard, catalogue)
        self._is_listed = False
        self._odd_done: int | None = None
        self._to_adopt: list[FoundReplica] = []

    def close(self) -> None:
        self._comparison.close()

    @property
    def total(self) -> int | None:
        return self._comparison.files_listed if self._is_listed else None

    async def step(self) -> bool:
        """List a few directories, compare a page, look at a batch of oddities or left-overs; False at the end.

        Raises ``ShardUnavailable``.
        """
        self.done_in_step = 0
        if not self._is_listed:
            self._is_listed = not await self._comparison.list_some()
            return True
        if self._to_adopt:
            await self._adopt_some()
            return True
        if self._odd_done is None:
            page = await self._comparison.next_page()
            if page is None:
                self._odd_done = 0
            else:
                await self._compare(page)
            return True
        if batch := self._comparison.oddities[self._odd_done : self._odd_done + BATCH]:
            await self._look_at_oddities(batch)
            self._odd_done += len(batch)
            return True
        if not self.order.dry_run and await self._leftovers.step():
            return True
        await self._finish()
        return False

    async def _compare(self, page: Page) -> None:
        self.report.rows += len(page.rows)
        self.report.files += len(page.files)
        self.done_in_step = len(page.files)
        self.done += len(page.files)
        present = page.present()
        sizes = await look(self._shard, [row.name for row in present])
        found = list(zip(present, sizes, strict=True))
        # What was listed may be gone by now; so may its row.
        await self._miss([*page.absent(), *(row for row, size in found if size is None)])
        for row, size in found:
            if size is not None and size != row.size:
                await self._doubt(row, size)
        for file in page.returned():
            await self._return(file)
        if self.order.rebuild:
            self._to_adopt = page.strays()[::-1]
        else:
            await self._condemn(page.strays())
        await self._look_at_oddities(
            [OddEntry(Oddity.WRONG_NAME, path_of(file.name), file.inode) for file in page.misnamed()]
        )

    async def _miss(self, rows: Sequence[Row]) -> None:
        absent = await really_absent(self._shard, rows)
        for start in range(0, len(absent), DROP_BATCH):
            batch = absent[start : start + DROP_BATCH]
            if not self.order.dry_run:
                dropped = await self._catalogue.drop_absent(self._shard.id, [row.generation for row in batch])
                log.info("shard %s: %d files are missing", self._shard.id, dropped.dropped + dropped.kept)
            for row in batch:
                self.report.add(Finding.MISSING, str(row.name), acted=True)

    async def _doubt(self, row: Row, size: int) -> None:
        if self.order.dry_run or await self._catalogue.mark_suspect(self._shard.id, row.generation):
            self.report.add(Finding.WRONG_SIZE, f"{row.name}: {size} bytes instead of {row.size}", acted=True)

    async def _return(self, file: FoundReplica) -> None:
        if not self.order.dry_run:
            await self._catalogue.aside_again(self._shard.id, file)
        self.report.add(Finding.RETURNED, str(file.name), acted=True)

    async def _condemn(self, strays: Sequence[FoundReplica]) -> None:
        if strays and await self._catalogue.strays_are_held():
            self.report.counts[Finding.STRAY].waiting += len(strays)
            return
        for start in range(0, len(strays), BATCH):
            batch = strays[start : start + BATCH]
            ages = await self._ages([(path_of(file.name), file.inode) for file in batch])
            settled = [file for file in batch if ages[path_of(file.name)] >= self._settle_seconds]
            self.report.counts[Finding.STRAY].waiting += len(batch) - len(settled)
            sizes = await look(self._shard, [file.name for file in settled])
            there = [(file, size) for file, size in zip(settled, sizes, strict=True) if size is not None]
            condemned = {file.name.generation for file, _ in there}
            if there and not self.order.dry_run:
                condemned = set(await self._catalogue.condemn_strays(self._shard.id, there))
            for file, _ in there:
                if file.name.generation in condemned:
                    self.report.add(Finding.STRAY, str(file.name), acted=True)

    async def _adopt_some(self) -> None:
        """Read a few found files whole, and make rows of those that are what their names say."""
        read_bytes = 0
        while self._to_adopt and read_bytes < ADOPT_BYTES:
            file = self._to_adopt.pop()
            [size] = await look(self._shard, [file.name])
            if not size:
                continue
            read_bytes += size
            digests = await digest_whole(self._shard, file.name, size)
            if digests is None or digests.sha256 != file.name.sha256:
                self.report.add(Finding.STRAY, f"{file.name}: its bytes are not what its name says", acted=False)
            elif (outcome := await self._catalogue.adopt(self._shard.id, file, digests)) != "refused":
                self.report.add(Finding(outcome), str(file.name), acted=True)

    async def _look_at_oddities(self, batch: Sequence[OddEntry]) -> None:
        if not batch:
            return
        ages = await self._ages([(entry.path, entry.inode) for entry in batch])
        for entry in batch:
            finding = Finding(entry.oddity.value)
            settled = ages[entry.path] >= self._settle_seconds
            may_act = settled and (self.order.repair or not finding.needs_order)
            if not settled and (self.order.repair or not finding.needs_order):
                self.report.counts[finding].waiting += 1
                # A temp may be an upload under way; what is foreign is told at once.
                if not finding.needs_order:
                    continue
            if may_act and not self.order.dry_run and not await self._set_aside(entry):
                continue
            self.report.add(finding, entry.path.decode(errors="backslashreplace"), acted=may_act)

    async def _set_aside(self, entry: OddEntry) -> bool:
        moved = await self._shard.set_aside_entry(entry.path, entry.inode)
        if moved:
            log.warning("shard %s: %r was set aside", self._shard.id, entry.path)
        return moved

    async def _ages(self, seen: Sequence[tuple[bytes, int]]) -> dict[bytes, float]:
        return await self._catalogue.sighting_ages(self._shard.id, seen, note=not self.order.dry_run)

    async def _finish(self) -> None:
        await self._shard.check_intact()
        self.report.unlisted = self._comparison.oddities_beyond
        # What was not listed may still be there.
        if not self.order.dry_run and not self.report.unlisted:
            await self._catalogue.forget_unseen(self._shard.id, self.order.id)


def path_of(name: BlobName) -> bytes:
    """Return where a replica is below its shard's directory."""
    return f"blobs/{fan_out_of(str(name))}/{name}".encode()
