"""Look-ups asked together: each gets its own answer, none an old one, and one that is wrong spoils no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_node.db import artifacts as rows
from repo_node.db.artifacts import LookUp
from repo_node.db.errors import CatalogueUnavailable, NoSchema
from repo_node.db.lookups import LookUps
from repo_node.db.pool import open_database
from repo_node.db.round_trips import LATE_SECONDS, ROUND_TRIPS_MAX
from repo_node.paths import ArtifactPath
from tests.repo_node.db.scene import REPOSITORY, Queries, Scene, database_section
from tests.repo_node.db.severing_proxy import Fate, open_proxy

Key = tuple[str, str, str]


def path(name: str) -> ArtifactPath:
    return ArtifactPath(REPOSITORY, "f", name)


class Server:
    """Stands for Postgres: answers with the number of the round trip, as the id of a repository."""

    def __init__(self) -> None:
        self.trips: list[list[str]] = []
        self.answer: Callable[[int, list[str]], Awaitable[None]] = self._at_once

    async def _at_once(self, trip: int, names: list[str]) -> None:
        return None

    async def resolve(self, _: object, *key: str) -> LookUp:
        [found] = await self.resolve_each(None, [(key[0], key[1], key[2])])
        return found

    async def resolve_each(self, _: object, keys: Sequence[Key]) -> list[LookUp]:
        names = [key[2] for key in keys]
        self.trips.append(names)
        trip = len(self.trips)
        await self.answer(trip, names)
        return [LookUp(trip, None) for _ in names]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(rows, "resolve", made.resolve)
    monkeypatch.setattr(rows, "resolve_each", made.resolve_each)
    return made


def open_look_ups(database: Any = None, *, per_round_trip_max: int = 64, wait_seconds_max: float = 5.0) -> LookUps:
    return LookUps(database, per_round_trip_max=per_round_trip_max, wait_seconds_max=wait_seconds_max)


@pytest.fixture
async def look_ups(server: Server) -> AsyncIterator[LookUps]:
    made = open_look_ups()
    yield made
    await made.close()


async def ask(look_ups: LookUps, *names: str) -> list[LookUp | BaseException]:
    return await asyncio.gather(*(look_ups.resolve(path(name)) for name in names), return_exceptions=True)


# ---------------------------------------------------------------- who goes with whom


async def test_those_who_come_together_share_a_round_trip(look_ups: LookUps, server: Server) -> None:
    assert await ask(look_ups, "a", "b", "a") == [LookUp(1, None)] * 3
    assert server.trips == [["a", "b", "a"]]


async def test_who_comes_while_a_round_trip_is_under_way_is_asked_for_after_it(
    look_ups: LookUps, server: Server
) -> None:
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def hold(trip: int, _: list[str]) -> None:
        if trip == 1:
            under_way.set()
            await go_on.wait()

    server.answer = hold
    first = asyncio.create_task(look_ups.resolve(path("a")))
    await under_way.wait()
    second = asyncio.create_task(look_ups.resolve(path("a")))
    third = asyncio.create_task(look_ups.resolve(path("b")))
    await asyncio.sleep(0)
    go_on.set()
    assert [(await one).repository_id for one in (first, second, third)] == [1, 2, 2]
    assert server.trips == [["a"], ["a", "b"]]


async def test_a_round_trip_that_is_late_holds_up_nobody(look_ups: LookUps, server: Server) -> None:
    go_on = asyncio.Event()

    async def hold(trip: int, _: list[str]) -> None:
        if trip == 1:
            await go_on.wait()

    server.answer = hold
    late = asyncio.create_task(look_ups.resolve(path("late")))
    while not server.trips:
        await asyncio.sleep(0)
    assert [(await look_ups.resolve(path(name))).repository_id for name in ("a", "b")] == [2, 3]
    assert not late.done()
    go_on.set()
    assert (await late).repository_id == 1


async def test_round_trips_are_limited_in_size_and_in_number(server: Server) -> None:
    look_ups, go_on = open_look_ups(per_round_trip_max=3), asyncio.Event()

    async def hold(_: int, __: list[str]) -> None:
        await go_on.wait()

    server.answer = hold
    asked = [asyncio.create_task(look_ups.resolve(path(str(number)))) for number in range(40)]
    async with asyncio.timeout(30):
        while len(server.trips) < ROUND_TRIPS_MAX:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert [len(names) for names in server.trips] == [3] * ROUND_TRIPS_MAX
    go_on.set()
    await asyncio.gather(*asked)
    assert [name for names in server.trips for name in names] == [str(number) for number in range(40)]
    await look_ups.close()


async def test_who_asks_again_just_when_all_round_trips_end_is_asked_for(server: Server) -> None:
    look_ups, go_on = open_look_ups(per_round_trip_max=1), asyncio.Event()

    async def hold(_: int, __: list[str]) -> None:
        await go_on.wait()

    server.answer = hold

    async def ask_twice() -> int | None:
        await look_ups.resolve(path("a"))
        return (await look_ups.resolve(path("again"))).repository_id

    asked = [asyncio.create_task(ask_twice())]
    asked += [asyncio.create_task(look_ups.resolve(path("b"))) for _ in range(ROUND_TRIPS_MAX - 1)]  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        while len(server.trips) < ROUND_TRIPS_MAX:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        go_on.set()
        assert await asked[0] == ROUND_TRIPS_MAX + 1
    await asyncio.gather(*asked)
    await look_ups.close()


async def test_who_has_waited_too_long_for_a_round_trip_is_told_so(server: Server) -> None:
    look_ups, go_on = open_look_ups(per_round_trip_max=1, wait_seconds_max=1.0), asyncio.Event()

    async def hold(_: int, __: list[str]) -> None:
        await go_on.wait()

    server.answer = hold
    asked = [asyncio.create_task(look_ups.resolve(path(str(number)))) for number in range(ROUND_TRIPS_MAX + 1)]
    async with asyncio.timeout(30):
        while len(server.trips) < ROUND_TRIPS_MAX:
            await asyncio.sleep(0.01)
    await asyncio.sleep(1.1)
    go_on.set()
    *_, last = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(last, CatalogueUnavailable)
    assert len(server.trips) == ROUND_TRIPS_MAX
    assert (await look_ups.resolve(path("a"))).repository_id == ROUND_TRIPS_MAX + 1
    await look_ups.close()


# ---------------------------------------------------------------- what goes wrong


async def test_a_failure_is_told_to_each_as_an_error_of_their_own(look_ups: LookUps, server: Server) -> None:
    async def fail(_: int, __: list[str]) -> None:
        raise NoSchema("the tables are gone")

    server.answer = fail
    found = await ask(look_ups, "a", "b")
    assert [(type(one), str(one)) for one in found] == [(NoSchema, "the tables are gone")] * 2
    assert found[0] is not found[1]


async def test_one_that_is_wrong_spoils_no_other(look_ups: LookUps, server: Server) -> None:
    async def refuse(_: int, names: list[str]) -> None:
        if "wrong" in names:
            raise ValueError("no such text")

    server.answer = refuse
    good, wrong, fine = await ask(look_ups, "good", "wrong", "fine")
    assert (good, fine) == (LookUp(2, None), LookUp(4, None))
    assert isinstance(wrong, ValueError)


async def test_who_gives_up_is_forgotten_and_spoils_no_other(look_ups: LookUps, server: Server) -> None:
    go_on = asyncio.Event()

    async def hold(trip: int, _: list[str]) -> None:
        await go_on.wait()

    server.answer = hold
    asked = [asyncio.create_task(look_ups.resolve(path(name))) for name in ("a", "b")]
    while not server.trips:
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(look_ups.resolve(path(name))) for name in ("c", "d")]
    await asyncio.sleep(0)
    for one in (asked[0], waiting[0]):
        one.cancel()
    await asyncio.sleep(0)
    go_on.set()
    found = await asyncio.gather(*asked, *waiting, return_exceptions=True)
    assert [type(one) for one in found] == [asyncio.CancelledError, LookUp, asyncio.CancelledError, LookUp]
    assert server.trips == [["a", "b"], ["d"]]


async def test_the_end_of_the_node_leaves_nobody_waiting(look_ups: LookUps, server: Server) -> None:
    async def hang(_: int, __: list[str]) -> None:
        await asyncio.Event().wait()

    server.answer = hang
    asked = [asyncio.create_task(look_ups.resolve(path("a")))]
    while not server.trips:
        await asyncio.sleep(0)
    asked.append(asyncio.create_task(look_ups.resolve(path("b"))))
    await asyncio.sleep(0)
    await look_ups.close()
    for one in asked:
        with pytest.raises(CatalogueUnavailable):
            await one


async def test_who_comes_after_the_end_of_the_node_is_refused_and_does_not_wait(server: Server) -> None:
    look_ups = open_look_ups()
    first = asyncio.create_task(look_ups.resolve(path("a")))
    await asyncio.sleep(0)  # it waits by now, and what asks for it has not begun
    await look_ups.close()
    for one in (first, look_ups.resolve(path("b"))):
        with pytest.raises(CatalogueUnavailable):
            await asyncio.wait_for(one, 5)
    assert server.trips == []


async def test_nothing_is_asked_any_more_for_those_who_heard_that_the_node_leaves(server: Server) -> None:
    """Not even when the round trip under way is late just then, or takes its time to end."""

    async def deaf(_: int, __: list[str]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3 * LATE_SECONDS)

    server.answer = deaf
    look_ups = open_look_ups()
    asked = [asyncio.create_task(look_ups.resolve(path("a")))]
    while not server.trips:
        await asyncio.sleep(0)
    asked.append(asyncio.create_task(look_ups.resolve(path("b"))))
    await asyncio.sleep(0)
    await look_ups.close()
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert [type(one) for one in found] == [CatalogueUnavailable] * 2
    assert server.trips == [["a"]]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "wrong", "away"])), max_size=30))
@settings(max_examples=50, deadline=None)
def test_everybody_gets_the_answer_they_would_have_got_alone(asked: list[tuple[int, str]]) -> None:
    """Whenever they come, and whatever others ask."""
    errors = {"wrong": ValueError, "away": CatalogueUnavailable}

    class Names:
        async def fetchrow(self, _: object, *key: str) -> dict[str, Any]:
            [row] = await self.fetch_each(None, [key])
            return row

        async def fetch_each(self, _: object, keys: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
            await asyncio.sleep(0)
            # A server that is away is away for all: here each one who meets it asks in a round trip of their own.
            if len(keys) > 1 and any(key[2] in errors for key in keys):
                raise ValueError("one of them")
            if keys[0][2] in errors:
                raise errors[keys[0][2]](keys[0][2])
            return [{"repo_id": ord(key[2]), "name": None, "is_virtual": False} for key in keys]

    async def one(look_ups: LookUps, pause: int, name: str) -> LookUp | type[BaseException]:
        for _ in range(pause):
            await asyncio.sleep(0)
        try:
            return await look_ups.resolve(path(name))
        except Exception as error:
            return type(error)

    async def run() -> list[LookUp | type[BaseException]]:
        look_ups = open_look_ups(Names(), per_round_trip_max=4)
        found = await asyncio.gather(*(one(look_ups, *each) for each in asked))
        await look_ups.close()
        return found

    assert asyncio.run(run()) == [errors.get(name) or LookUp(ord(name), None) for _, name in asked]


# ---------------------------------------------------------------- with a real Postgres


async def test_postgres_answers_each_of_a_round_trip_as_if_asked_alone(scene: Scene, queries: Queries) -> None:
    for name in ("a", "b", "c"):
        await scene.upload(f"f/{name}", name.encode())
    look_ups = open_look_ups(scene.database)
    asked = [path("a"), path("none"), path("b"), ArtifactPath("no-such", "f", "a"), ArtifactPath(REPOSITORY, "", "f")]
    alone = [await rows.resolve(scene.database, at.repository, at.folder, at.name) for at in asked]
    queries.seen.clear()
    assert await asyncio.gather(*map(look_ups.resolve, asked)) == alone
    assert queries.seen == [("artifact_resolve", "ok")]
    assert [found.repository_id is None for found in alone] == [False, False, False, True, False]
    assert [found.item is None for found in alone] == [False, True, False, True, False]


async def test_a_path_that_postgres_refuses_spoils_no_other(scene: Scene) -> None:
    await scene.upload("f/a")
    look_ups = open_look_ups(scene.database)
    good, wrong = await ask(look_ups, "a", "no\0text")
    assert isinstance(good, LookUp) and good.item is not None
    assert isinstance(wrong, Exception) and not isinstance(wrong, CatalogueUnavailable)


@pytest.mark.parametrize("fate", Fate)
async def test_a_round_trip_that_breaks_is_unavailable_to_all_in_it_and_the_next_one_works(
    scene: Scene, queries: Queries, fate: Fate
) -> None:
    for name in ("findme", "other"):
        await scene.upload(f"f/{name}", name.encode())
    limits = {"statement_timeout_seconds": 1.0, "connect_timeout_seconds": 1.0}
    async with (
        open_proxy(scene.dsn) as (proxy, dsn),
        open_database(database_section(dsn, **limits), queries) as database,
    ):
        look_ups = open_look_ups(database)
        trap = proxy.set_trap(b"findme", fate)
        assert [type(one) for one in await ask(look_ups, "other", "findme")] == [CatalogueUnavailable] * 2
        assert trap.sprung
        found = await ask(look_ups, "other", "findme")
        assert all(isinstance(one, LookUp) and one.item is not None for one in found)
        await look_ups.close()
