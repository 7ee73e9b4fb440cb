"""What virtual repositories show of others, and in which order it is looked for. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from repo_node.auth.path_patterns import both
from repo_node.auth.read_scope import ReadScope
from repo_node.db.repositories import Repository
from repo_node.paths import ArtifactPath


@dataclass(frozen=True, slots=True)
class Source:
    """A repository that holds artifacts, and the virtual ones through which it is seen, whose patterns hold too."""

    repository: Repository
    above: tuple[Repository, ...] = ()

    @property
    def key(self) -> str:
        return self.repository.key

    def accepts(self, path: str) -> bool:
        """Say whether the patterns let an artifact be seen."""
        return self.repository.accepts(path) and all(one.accepts(path) for one in self.above)

    def shows(self, path: str, is_folder: bool, scope: ReadScope) -> bool:
        """Say whether whoever has ``scope`` may know of what is at a path."""
        if is_folder:
            return scope.reaches(self.key, path)
        return scope.allows(self.key, path) and all(one.accepts(path) for one in self.above)

    def covers(self, path: str, scope: ReadScope) -> bool:
        """Say whether ``shows`` is true of everything in a folder."""
        return not self.above and scope.covers(self.key, path)

    def reach(self, scope: ReadScope, *, folders: bool) -> str | None:
        """Return a regular expression for the folders in which something may be shown, None for all.

        With ``folders``, a folder is shown whatever the repositories' patterns keep out of it.
        """
        patterns = () if folders else (one.reach_regex for one in (self.repository, *self.above))
        return both(scope.reach(self.key), *patterns)

    def roots(self, scope: ReadScope) -> tuple[str, ...]:
        """Return folders at or below one of which lies all that is shown; '' is the whole repository."""
        readable = scope.roots(self.key)
        return self.repository.roots if "" in readable else readable

    def limit(self, scope: ReadScope) -> str | None:
        """Return a regular expression for the artifacts that are shown, None for all."""
        seen_through = (one.paths_regex for one in self.above)
        return both(scope.limit(self.key), self.repository.paths_regex, *seen_through)


@dataclass(frozen=True, slots=True)
class View:
    """A virtual repository, and what it shows, in the order in which it is looked through."""

    repository: Repository
    sources: tuple[Source, ...]

    def places(self, at: ArtifactPath) -> list[ArtifactPath]:
        """Return where an artifact that is at ``at`` through this repository may lie."""
        return [place_in(source, at) for source in self.sources if source.accepts(at.path)]

    def reaches(self, at: ArtifactPath, scope: ReadScope) -> bool:
        """Say whether a folder may be known through this repository."""
        return any(scope.reaches(source.key, at.path) for source in self.sources)

    def reaches_any(self, keys: Container[str]) -> bool:
        """Say whether one of these repositories is seen through this one."""
        return any(source.key in keys for source in self.sources)

    def deploy_place(self, at: ArtifactPath) -> ArtifactPath | None:
        """Return where an upload to ``at`` goes, None where no default deployment repository is set."""
        target = self.repository.default_deployment
        return None if target is None else ArtifactPath(target, at.folder, at.name)


def place_in(source: Source, at: ArtifactPath) -> ArtifactPath:
    return ArtifactPath(source.key, at.folder, at.name)


def make_view(top: Repository, found: Iterable[Repository]) -> View:
    """Return what ``top`` shows; ``found`` has its members and theirs.

    Each counts where it is met first. Those with priority come before all others: what they have is not looked for
    elsewhere.
    """
    by_key = {one.key: one for one in found}
    sources: dict[str, Source] = {}
    met = {top.key}

    def walk(above: tuple[Repository, ...]) -> None:
        for key in above[-1].members:
            member = by_key.get(key)
            if member is None or key in met:
                continue
            met.add(key)
            if member.is_virtual:
                walk((*above, member))
            else:
                sources[key] = Source(member, tuple(one for one in above if one.paths_regex is not None))

    walk((top,))
    return View(top, tuple(sorted(sources.values(), key=lambda source: not source.repository.priority)))
