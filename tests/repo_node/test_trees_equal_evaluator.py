"""Lists and searches are what a plain reading of the rules gives, whatever lies where and whoever asks."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from repo_node import merging, trees
from repo_node.auth.path_patterns import PathPatterns
from repo_node.auth.read_scope import EVERYTHING, ReadScope
from repo_node.auth.rights import Places
from repo_node.config import DatabaseSection
from repo_node.db.pool import Database, open_database
from repo_node.db.repositories import Repository
from repo_node.db.searches import Hit, Times
from repo_node.paths import ArtifactPath, join_path, split_path
from repo_node.searches import Area, Searches, Wanted
from repo_node.settings import LiveSettings
from repo_node.trees import Depth, Trees
from repo_node.versions import version_key
from repo_node.views import Source, make_view
from tests.postgres import TestServer
from tests.repo_node.db.scene import Queries

NOW = datetime.now(UTC)
NAMES = ("a", "a-b", "a0", "a.b", "a!", "ab", "a%", "a_", "A", "é", "￿", "\U0001f600", "b")
PIECES = (*NAMES, "*", "**", "a*", "?", "*b", "a?")
KEYS = ("one", "two", "three")
REPOSITORY_SQL = """
    INSERT INTO repositories (id, key, created_by, paths_regex) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 'x', $3)
"""
BLOB_SQL = """
    INSERT INTO blobs (id, uid, sha256, size, redundancy, block_digests) OVERRIDING SYSTEM VALUE
    SELECT i, gen_random_uuid(), sha256(i::text::bytea), 1, 1, '\\x0011223344556677' FROM generate_series(1, 2) AS i
"""
ARTIFACT_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by, modified_at, properties)
    VALUES ($1, $2, $3, $4, 'x', 'x', $5, $6)
"""


# What comes and goes is called as nothing else.
COME_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)
    SELECT i, '{}', '{}', 1, 'x', 'x' FROM generate_series(11, 13) AS i ON CONFLICT DO NOTHING
"""
CALM_SQL = "DELETE FROM artifacts WHERE name LIKE '%~'"


@dataclass(frozen=True)
class Thing:
    path: str
    is_folder: bool
    modified_at: datetime
    version: str


@dataclass(frozen=True)
class World:
    """Repositories with what is in them, and whoever asks."""

    repositories: tuple[Repository, ...]
    things: dict[str, dict[str, Thing]]
    scope: ReadScope

    def sources(self, key: str) -> Sequence[Source]:
        top = next(one for one in self.repositories if one.key == key)
        return make_view(top, self.repositories).sources if top.is_virtual else [Source(top)]

    def shown(self, source: Source) -> dict[str, Thing]:
        """Return what whoever asks sees of a source."""
        return {
            path: thing
            for path, thing in self.things[source.key].items()
            if source.shows(path, thing.is_folder, self.scope) and (thing.is_folder or source.repository.accepts(path))
        }

    @property
    def folders(self) -> list[str]:
        return sorted({path for key in KEYS for path, thing in self.things[key].items() if thing.is_folder})

    def listed(self, key: str, below: str, depth: Depth) -> list[tuple[str, bool]]:
        found: dict[str, Thing] = {}
        for source in self.sources(key):
            for path, thing in self.shown(source).items():
                rest = path.removeprefix(f"{below}/") if below else path
                inside = not below or rest != path
                near = depth.levels is None or rest.count("/") < depth.levels
                if inside and near and (depth.folders or not thing.is_folder):
                    found.setdefault(path, thing)
        return [(path, found[path].is_folder) for path in sorted(found, key=split_path)]

    def artifacts(self, *keys: str) -> dict[tuple[str, str], Thing]:
        """Return the artifacts that are found in repositories, by the one that holds each, and path."""
        # What is asked for by its own name is not narrowed by a virtual repository that is asked for too.
        held = [one for key in keys for one in self.sources(key) if key in KEYS or one.key not in keys]
        return {
            (source.key, path): thing
            for source in held
            for path, thing in self.shown(source).items()
            if not thing.is_folder
        }


PLACE = st.lists(st.sampled_from(NAMES[:3]), min_size=1, max_size=2).map("/".join)
PATTERN = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("/".join),
    st.builds("{}/{}".format, PLACE, st.sampled_from(["**", "**", "*", "**/a"])),
)
ALL_PATTERNS = st.just(["**"])
PATTERNS = st.builds(
    PathPatterns.of,
    st.one_of(ALL_PATTERNS, *[st.lists(PATTERN, min_size=1, max_size=2)] * 4),
    st.just([]) | st.lists(PATTERN, max_size=2),
)
LIMITED = st.builds(
    lambda named, elsewhere: ReadScope(places=Places(named, tuple(elsewhere))),
    st.dictionaries(st.sampled_from(KEYS), st.lists(PATTERNS, min_size=1, max_size=2).map(tuple), min_size=1),
    st.lists(PATTERNS, max_size=1),
)
SCOPES = st.one_of(st.just(EVERYTHING), *[LIMITED] * 3)
PATHS = st.builds("{}/{}".format, PLACE, st.lists(st.sampled_from(NAMES[2:]), min_size=1, max_size=2).map("/".join))
THINGS = st.lists(
    st.tuples(
        PATHS | st.sampled_from(NAMES),
        st.sampled_from([False, False, True]),
        st.integers(0, 90),
        st.sampled_from(["1", "1.10", "1.9"]),
    ),
    min_size=6,
    max_size=14,
)


def things_of(made: list[tuple[str, bool, int, str]]) -> dict[str, Thing]:
    """Return a tree: folders around what is in them, and no file that has something in it."""
    found: dict[str, Thing] = {}
    for number, (path, is_folder, days, version) in enumerate(made):
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        if path in found or any(one in found and not found[one].is_folder for one in above):
            continue
        when = NOW - timedelta(days=days, seconds=number)
        for one in above:
            found.setdefault(one, Thing(one, True, when, ""))
        found[path] = Thing(path, is_folder, when, version)
    return found


@st.composite
def worlds(draw: st.DrawFn) -> World:
    def repository(number: int, key: str, **more: Any) -> Repository:
        patterns = draw(
            st.one_of(
                *[st.just(("**/*", ""))] * 3, st.tuples(st.just("**/*"), PATTERN), st.tuples(PATTERN, st.just(""))
            )
        )
        return Repository(
            id=number, key=key, package_type="generic", created_at=NOW, includes_pattern=patterns[0],
            excludes_pattern=patterns[1], priority=draw(st.booleans()), **more
        )  # fmt: skip

    locals_ = [
        repository(11 + number, key, rclass="local", blacked_out=draw(st.sampled_from([False] * 9 + [True])))
        for number, key in enumerate(KEYS)
    ]
    virtuals = [
        repository(21, "inner", rclass="virtual", members=tuple(draw(st.permutations(KEYS)))[:2]),
        repository(22, "outer", rclass="virtual", members=tuple(draw(st.permutations(["inner", *KEYS])))[:3]),
    ]
    things = {key: things_of(draw(THINGS)) for key in KEYS}
    return World((*locals_, *virtuals), things, draw(SCOPES))


class Asked:
    """The services over one database."""

    def __init__(self, database: Database) -> None:
        self.world = cast(World, None)
        live = LiveSettings()

        async def sources(key: str) -> Sequence[Source]:
            return self.world.sources(key)

        async def list_all() -> Sequence[Repository]:
            return self.world.repositories

        repositories = cast(Any, SimpleNamespace(sources=sources, list_all=list_all))
        self.trees = Trees(database, repositories, live)
        self.searches = Searches(database, repositories, live)

    async def become(self, connection: asyncpg.Connection, world: World) -> None:
        self.world = world
        await connection.execute("DELETE FROM artifacts; DELETE FROM repositories WHERE id < 30")
        for one in world.repositories:
            if one.is_virtual:
                continue
            await connection.execute(REPOSITORY_SQL, one.id, one.key, one.paths_regex)
            rows = [
                (
                    one.id, *split_path(thing.path), None if thing.is_folder else 1, thing.modified_at,
                    json.dumps({"version": [thing.version]} if thing.version else {}),
                )
                for thing in world.things[one.key].values()
            ]  # fmt: skip
            await connection.executemany(ARTIFACT_SQL, rows)


@pytest.fixture(scope="module")
def session(postgres: TestServer) -> Iterator[tuple[asyncio.Runner, Asked, asyncpg.Connection]]:
    with postgres.database(postgres.template()) as dsn, asyncio.Runner() as runner:
        opened = open_database(DatabaseSection(dsn=dsn), Queries())
        database: Database = runner.run(opened.__aenter__())
        connection = runner.run(asyncpg.connect(dsn))
        runner.run(connection.execute("DELETE FROM repositories"))
        runner.run(connection.execute(BLOB_SQL))
        runner.run(connection.execute("SET session_replication_role = replica"))
        yield runner, Asked(database), connection
        runner.run(connection.close())
        runner.run(opened.__aexit__(None, None, None))


anything = settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
Session = tuple[asyncio.Runner, Asked, asyncpg.Connection]


@anything
@given(worlds(), st.data(), st.integers(1, 5))
def test_lists_are_whole(session: Session, world: World, data: st.DataObject, size: int) -> None:
    runner, asked, connection = session
    runner.run(asked.become(connection, world))

    async def listed(key: str, path: str, depth: Depth, chance: random.Random | None = None) -> list[tuple[str, bool]]:
        """List a folder; by ``chance`` artifacts come and go from page to page."""
        found = []
        async for page in asked.trees.list(ArtifactPath(key, *split_path(path)), depth, world.scope):
            found += [(entry.path, entry.is_folder) for entry in page]
            if chance is not None:
                folder, name = chance.choice(["", *world.folders]), f"{chance.choice(NAMES)}~"
                await connection.execute(CALM_SQL if chance.random() < 0.3 else COME_SQL.format(folder, name))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "SHARE_MIN", size)
        patch.setattr(trees, "PAGE", size)
        patch.setattr(merging, "PAGE", size)
        for _ in range(6):
            key = data.draw(st.sampled_from([*KEYS, "inner", "outer"]))
            path = data.draw(st.sampled_from(["", *world.folders]))
            depth = Depth(data.draw(st.sampled_from([None, 1, 2, 3])), data.draw(st.booleans()))
            assert runner.run(listed(key, path, depth)) == world.listed(key, path, depth)
            times = Counter(runner.run(listed(key, path, depth, data.draw(st.randoms(use_true_random=False)))))
            assert set(times.values()) <= {1} and times.keys() >= set(world.listed(key, path, depth))
            runner.run(connection.execute(CALM_SQL))


def placed(hits: Sequence[Hit]) -> list[tuple[str, str]]:
    return sorted((hit.item.repository, join_path(hit.item.folder, hit.item.name)) for hit in hits)


@anything
@given(worlds(), st.data())
def test_searches_find_what_is_there(session: Session, world: World, data: st.DataObject) -> None:
    runner, asked, connection = session
    runner.run(asked.become(connection, world))
    keys = data.draw(st.lists(st.sampled_from([*KEYS, "inner", "outer"]), min_size=1, max_size=3, unique=True))
    area, there = Area(keys, world.scope), world.artifacts(*keys)
    # At its end, where a search and a permission mean different things by it.
    pattern = data.draw(PATTERN.filter(lambda text: not text.endswith("**")))
    name = pattern.rpartition("/")[2]
    assert placed(runner.run(asked.searches.by_name("*", area))) == sorted(there)
    glob = PathPatterns.of([name if set(name) & set("*?") else f"*{name}*"], [])
    found = runner.run(asked.searches.by_name(name, area))
    assert placed(found) == sorted(at for at in there if glob.allow(split_path(at[1])[1]))
    ant = PathPatterns.of([pattern], [])
    found = runner.run(asked.searches.by_path(pattern, area))
    assert placed(found) == sorted(at for at in there if ant.allow(at[1]))
    found = runner.run(asked.searches.by_time(NOW - timedelta(days=30), NOW, Times(modified=True), area))
    assert placed(found) == sorted(at for at, one in there.items() if one.modified_at >= NOW - timedelta(days=30))
    below = data.draw(st.sampled_from(["", *world.folders]))
    inside = {at: one for at, one in there.items() if not below or at[1].startswith(f"{below}/")}
    latest = runner.run(asked.searches.latest_by_property(below, Wanted({}), area, with_artifacts=True))
    if not inside:
        assert latest is None
    else:
        highest = max((one.version for one in inside.values()), key=version_key)
        assert latest is not None and latest[0] == highest
        assert placed(latest[1]) == sorted(at for at, one in inside.items() if one.version == highest)


@anything
@given(worlds(), st.data())
def test_what_was_modified_last(session: Session, world: World, data: st.DataObject) -> None:
    runner, asked, connection = session
    runner.run(asked.become(connection, world))
    key = data.draw(st.sampled_from([*KEYS, "inner", "outer"]))
    below = data.draw(st.sampled_from(["", *world.folders]))
    inside = [one for at, one in world.artifacts(key).items() if not below or at[1].startswith(f"{below}/")]
    found = runner.run(asked.trees.last_modified(ArtifactPath(key, *split_path(below)), world.scope))
    assert (found and found[1]) == max((one.modified_at for one in inside), default=None)
