"""Artifacts as Postgres last told of them, for reads while it is away.

What is kept is bounded in number (``stale_entries_max``) and in age (``stale_seconds_max``), which counts from the
moment Postgres told it. What changes through this process is forgotten at once, also what was being asked just then;
what changes through another node, or another process of this one, may be found for as long as its age allows.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from repo_node.db.artifacts import Item
from repo_node.paths import ArtifactPath
from repo_node.settings import LiveSettings
from sharding.model import BLOCK_DIGEST_BYTES, block_count

Places = tuple[ArtifactPath, ...]
"""One path, or all those at which an artifact of a virtual repository may be, in their order."""

MARKS = 1024
"""Changes are counted apart for so many groups of paths: a change hinders only the reads of its own group."""


@dataclass(frozen=True, slots=True)
class Found:
    """An item, and how old it may be: since when Postgres has not been heard of for sure. None: it is as of now."""

    item: Item
    stale_seconds: float | None = None


class RecentItems:
    """Remembers what ``keep`` is given; ``find`` gives it back."""

    def __init__(self, settings: LiveSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._items: OrderedDict[Places, tuple[Item, float]] = OrderedDict()
        self._shared: dict[tuple[str, str], set[Places]] = {}
        """What is remembered of several places, by the folder and the name that these have in common."""
        self._changes = [0] * MARKS
        self._gone: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._gone_before = float("-inf")

    def __len__(self) -> int:
        return len(self._items)

    def mark(self, *places: ArtifactPath) -> int:
        """Return what tells ``keep`` whether one of these has changed since; taken before Postgres is asked."""
        changes = 0
        for at in places:
            changes += self._changes[hash(at) % MARKS]
        return changes

    def keep(self, at: ArtifactPath, item: Item, mark: int, asked_at: float, *others: ArtifactPath) -> None:
        """Remember an artifact that Postgres told of after ``asked_at``, in place of what it told before.

        With ``others``, it was at the first of all these places that had any.
        """
        places = (at, *others)
        if mark != self.mark(*places):
            # What was remembered before is older still.
            self._drop(places)
            return
        if not self._settings.now.stale_seconds_max or not is_readable_alone(item):
            self._drop(places)
            return
        self._items[places] = (item, asked_at)
        self._items.move_to_end(places)
        if others:
            self._shared.setdefault((at.folder, at.name), set()).add(places)
        while len(self._items) > self._settings.now.stale_entries_max:
            self._drop(next(iter(self._items)))

    def _drop(self, places: Places) -> None:
        if self._items.pop(places, None) is not None and len(places) > 1:
            name = (places[0].folder, places[0].name)
            self._shared[name].discard(places)
            if not self._shared[name]:
                del self._shared[name]

    def find(self, *places: ArtifactPath) -> Found | None:
        """Return what is remembered of a path, or of several together, unless it is too old."""
        known = self._items.get(places)
        if known is None or known[1] <= max(map(self._gone_at, places)):
            return None
        age_seconds = self._clock() - known[1]
        return Found(known[0], age_seconds) if age_seconds < self._settings.now.stale_seconds_max else None

    def _gone_at(self, at: ArtifactPath) -> float:
        """Return when the path, or a folder that it lies in, was last forgotten as a tree."""
        segments = at.path.split("/")
        above = ("/".join(segments[:count]) for count in range(len(segments) + 1))
        return max(self._gone_before, *(self._gone.get((at.repository, path), self._gone_before) for path in above))

    def forget(self, at: ArtifactPath) -> None:
        """Forget one artifact: it was overwritten, or may have been."""
        self._changes[hash(at) % MARKS] += 1
        self._drop((at,))
        for places in [one for one in self._shared.get((at.folder, at.name), ()) if at in one]:
            self._drop(places)

    def forget_tree(self, at: ArtifactPath) -> None:
        """Forget an artifact, or all that lies in a folder or a repository."""
        self.forget(at)
        # Only noted here: whoever deletes much should not search the memory each time.
        self._gone[at.repository, at.path] = self._clock()
        self._gone.move_to_end((at.repository, at.path))
        while len(self._gone) > self._settings.now.stale_entries_max:
            self._gone_before = self._gone.popitem(last=False)[1]


def is_readable_alone(item: Item) -> bool:
    """Say whether an artifact can be read to its end by what one look-up told: a folder cannot, nor a large blob."""
    blob = item.blob
    return blob is not None and len(blob.first_digests) == block_count(blob.size) * BLOCK_DIGEST_BYTES
