"""What the comparison of shards with rows finds, and what it asks of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sharding.listing import FoundReplica
from sharding.maintenance.audit_catalogue import PresenceCatalogue
from sharding.model import BlobDigests, Generation, ShardId

EXAMPLES_MAX = 20
"""Things named in a report, of each kind of finding."""

FOUND_MAX = 10_000


class Finding(StrEnum):
    """What is wrong between a shard and its rows."""

    MISSING = "missing"
    """A row without its file: the row goes, and a repair is queued."""
    WRONG_SIZE = "wrong_size"
    """A file of another size than its row's: it is judged."""
    STRAY = "stray"
    """A file that no row knows: it is condemned, and goes to quarantine."""
    RETURNED = "returned"
    """A file that had been set aside and is back: it goes there again."""
    TEMP = "temp"
    """A left-over of an upload: it goes to quarantine."""
    ADOPTED = "adopted"
    """In a rebuild: a copy more of a blob that is known."""
    FOUND = "found"
    """In a rebuild: a blob of which nothing was known."""
    WRONG_NAME = "wrong_name"
    FOREIGN = "foreign"
    LINK = "link"

    @property
    def needs_order(self) -> bool:
        """Whether it is touched only when an operator has said so."""
        return self in (Finding.WRONG_NAME, Finding.FOREIGN, Finding.LINK)


@dataclass(slots=True)
class Count:
    """``acted``: how many were, or in a dry run would have been, dealt with; ``waiting``: seen too short a time."""

    found: int = 0
    acted: int = 0
    waiting: int = 0


@dataclass(slots=True)
class CheckReport:
    """What a check found on one shard."""

    rows: int = 0
    files: int = 0
    unlisted: int = 0
    """Foreign things beyond those that a listing remembers."""
    counts: dict[Finding, Count] = field(default_factory=lambda: {finding: Count() for finding in Finding})
    examples: list[tuple[Finding, str]] = field(default_factory=list)

    def add(self, finding: Finding, what: str, *, acted: bool) -> None:
        count = self.counts[finding]
        count.found += 1
        count.acted += acted
        # What a rebuild found is what its operator must look at.
        if count.found <= (FOUND_MAX if finding is Finding.FOUND else EXAMPLES_MAX):
            self.examples.append((finding, what))

    def document(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {
            "rows": self.rows,
            "files": self.files,
            "unlisted": self.unlisted,
            "findings": {
                finding.value: {"found": count.found, "acted": count.acted, "waiting": count.waiting}
                for finding, count in self.counts.items()
                if count.found or count.waiting
            },
            "examples": [{"finding": finding.value, "what": what} for finding, what in self.examples],
        }


@dataclass(frozen=True, slots=True)
class CheckOrder:
    """One shard to be compared.

    ``dry_run``: change nothing; ``repair``: set aside also what may be somebody's; ``rebuild``: make rows of files.
    """

    id: int
    shard: ShardId
    dry_run: bool
    repair: bool
    rebuild: bool = False


class ReconcileCatalogue(PresenceCatalogue, Protocol):
    """Orders, sightings, and what a check has written."""

    async def next_check(self, shards: Sequence[ShardId]) -> CheckOrder | None:
        """Begin the oldest check of one of these shards that is not finished."""
        ...

    async def order_due(self, shards: Sequence[ShardId], period_seconds: float, retry_seconds: float) -> None:
        """Order a check of each shard whose last one is older than the period, or than an operator's request."""
        ...

    async def note_progress(self, check: int, done: int, total: int | None) -> None: ...

    async def finish_check(self, check: int, report: Mapping[str, Any], error: str | None) -> None: ...

    async def sighting_ages(
        self, shard: ShardId, seen: Sequence[tuple[bytes, int]], *, note: bool
    ) -> dict[bytes, float]:
        """Return for how long each path has been seen, by the database's clock, with the inode it has now.

        ``note`` writes that it is seen now; without it nothing is written, and what was never seen is 0.
        """
        ...

    async def forget_unseen(self, shard: ShardId, check: int) -> None:
        """Forget what has not been seen since this check began."""
        ...

    async def strays_are_held(self) -> bool:
        """Say whether files that no row knows must stay, because they may be all that is left of lost rows."""
        ...

    async def condemn_strays(self, shard: ShardId, strays: Sequence[tuple[FoundReplica, int]]) -> list[Generation]:
        """Condemn files that no row knows, given with their sizes; return those that still had no row."""
        ...

    async def adopt(self, shard: ShardId, file: FoundReplica, digests: BlobDigests) -> str:
        """Make rows of a file that was read whole: ``adopted``, ``found`` or ``refused``."""
        ...

    async def aside_again(self, shard: ShardId, file: FoundReplica) -> None:
        """Have a file moved to quarantine that is condemned already."""
        ...

    async def aside_known(self, shard: ShardId, generations: Sequence[Generation]) -> set[Generation]:
        """Return those of the generations that rows expect in quarantine, and take out of it by themselves."""
        ...

    async def leftovers_may_go(self) -> bool:
        """Say whether what no row knows may leave a quarantine.

        Not while deletions are held, nor while some blob has no good copy left: it may lie there under any name.
        """
        ...
