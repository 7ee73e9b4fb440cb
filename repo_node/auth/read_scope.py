"""What somebody may read, as lists and searches are filtered by it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from repo_node.auth.path_patterns import expression_of, reach_of
from repo_node.auth.rights import NOWHERE, Places
from repo_node.db.scopes import RowScope


@dataclass(frozen=True, slots=True)
class ReadScope:
    """``everything``, or what fits in ``places``."""

    everything: bool = False
    places: Places = NOWHERE

    def allows(self, repository: str, path: str) -> bool:
        """Say whether an artifact may be read."""
        return self.everything or self.places.allow(repository, path)

    def reaches(self, repository: str, path: str = "") -> bool:
        """Say whether a folder, or a repository, may be known: something in it may be read."""
        return self.everything or self.places.reach(repository, path)

    def covers(self, repository: str, path: str = "") -> bool:
        """Say whether all that lies in a folder, or in a repository, may be read."""
        return self.everything or self.places.cover(repository, path)

    def limit(self, repository: str) -> str | None:
        """Return a regular expression for the readable paths of a repository, None for all of them."""
        return None if self.everything else expression_of(self.places.of(repository))

    def reach(self, repository: str) -> str | None:
        """Return a regular expression for the folders in which something may be readable, None for all of them."""
        return None if self.everything else reach_of(self.places.of(repository))

    def roots(self, repository: str) -> tuple[str, ...]:
        """Return folders at or below one of which lies all that is readable; '' is the whole repository."""
        if self.everything:
            return ("",)
        return tuple({root: None for patterns in self.places.of(repository) for root in patterns.roots})

    def rows(self, repositories: Mapping[int, str]) -> RowScope:
        """Return the same for the rows of these repositories, by id and key."""
        if self.everything:
            return RowScope(tuple(repositories))
        limits = {id: self.limit(key) for id, key in repositories.items() if self.places.of(key)}
        partial = {id: limit for id, limit in limits.items() if limit is not None}
        whole = tuple(id for id, limit in limits.items() if limit is None)
        return RowScope(whole, tuple(partial), tuple(partial.values()))


EVERYTHING = ReadScope(everything=True)
