"""What permission targets give a user: compiled once, asked at every request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from repo_node.auth.path_patterns import PathPatterns


class Permission(StrEnum):
    """What a route needs. PUBLIC needs nothing, not even credentials."""

    PUBLIC = "public"
    READ = "read"
    ANNOTATE = "annotate"
    WRITE = "write"
    DELETE = "delete"
    MANAGE = "manage"
    METRICS = "metrics"
    ADMIN = "admin"


ACTIONS = frozenset({Permission.READ, Permission.ANNOTATE, Permission.WRITE, Permission.DELETE, Permission.MANAGE})
"""What a permission target can give; the rest belongs to administrators."""

ANY, ANY_LOCAL, ANY_REMOTE = "ANY", "ANY LOCAL", "ANY REMOTE"
ALL_WORDS = frozenset({ANY, ANY_LOCAL, ANY_REMOTE})
EVERY_REPOSITORY = frozenset({ANY, ANY_LOCAL})
"""No repository is remote: ``ANY LOCAL`` names all of them, ``ANY REMOTE`` none."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions that somebody has in repositories, where paths fit."""

    repositories: tuple[str, ...]
    paths: PathPatterns
    actions: frozenset[Permission]


@dataclass(frozen=True, slots=True)
class Places:
    """Where one permission holds: by repository, and ``elsewhere`` in those that are not named."""

    by_repository: Mapping[str, tuple[PathPatterns, ...]] = field(default_factory=dict)
    elsewhere: tuple[PathPatterns, ...] = ()

    def of(self, repository: str) -> tuple[PathPatterns, ...]:
        return self.by_repository.get(repository, self.elsewhere)

    def allow(self, repository: str, path: str) -> bool:
        return any(patterns.allow(path) for patterns in self.of(repository))

    def reach(self, repository: str, path: str) -> bool:
        return any(patterns.reach(path) for patterns in self.of(repository))

    def cover(self, repository: str, path: str) -> bool:
        return any(patterns.cover(path) for patterns in self.of(repository))

    def __bool__(self) -> bool:
        return bool(self.by_repository or self.elsewhere)


Rights = Mapping[Permission, Places]
NOWHERE = Places()


def compile_rights(grants: Iterable[Grant]) -> Rights:
    """Return where each permission holds. Grants add up: what one excludes another may give."""
    named: dict[Permission, dict[str, list[PathPatterns]]] = {}
    everywhere: dict[Permission, list[PathPatterns]] = {}
    for grant in grants:
        for action in grant.actions & ACTIONS:
            if EVERY_REPOSITORY.intersection(grant.repositories):
                everywhere.setdefault(action, []).append(grant.paths)
                continue
            for repository in set(grant.repositories) - ALL_WORDS:
                named.setdefault(action, {}).setdefault(repository, []).append(grant.paths)
    return {
        action: Places(
            {key: (*patterns, *everywhere.get(action, ())) for key, patterns in named.get(action, {}).items()},
            tuple(everywhere.get(action, ())),
        )
        for action in named.keys() | everywhere.keys()
    }
