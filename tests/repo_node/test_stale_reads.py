"""When a look-up ends in memory, and when it must not: what the service for artifacts makes of Postgres' answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from repo_node.artifacts import Artifacts
from repo_node.auth.read_scope import EVERYTHING
from repo_node.db import artifacts as rows
from repo_node.db import repositories as repository_rows
from repo_node.db.artifacts import Blob, Item, LookUp
from repo_node.db.errors import AbsenceInDoubt, CatalogueUnavailable
from repo_node.db.lookups import LookUps
from repo_node.db.repositories import Repository
from repo_node.errors import NotFound
from repo_node.metrics import Metrics
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from repo_node.trees import Trees
from sharding.model import BLOCK_DIGEST_BYTES

EPOCH = datetime(2031, 5, 4, tzinfo=UTC)
AT = ArtifactPath("r", "f", "a")
ITEM = Item(
    "r", "f", "a", EPOCH, "u", EPOCH, "u", EPOCH, {}, Blob(1, uuid4(), 5, b"", b"", b"", bytes(BLOCK_DIGEST_BYTES), ())
)
PRESENT, ABSENT = LookUp(1, ITEM), LookUp(1, None)


class Beats:
    """A pulse that a test holds in its hand."""

    is_fresh = True
    silence_seconds = 0.0

    def database_time(self) -> datetime:
        return EPOCH


class Catalogue:
    """Answers every look-up with what ``answer`` returns or raises."""

    asked = 0
    answer: Callable[[], LookUp] = staticmethod(lambda: PRESENT)

    async def resolve(self, *_: object) -> LookUp:
        self.asked += 1
        return self.answer()


@pytest.fixture
def beats() -> Beats:
    return Beats()


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    made = Catalogue()
    monkeypatch.setattr(rows, "resolve", made.resolve)
    return made


@pytest.fixture
def artifacts(beats: Beats, catalogue: Catalogue) -> Artifacts:
    """The service, on top of a catalogue and a pulse that the test decides over."""
    nothing, settings = None, LiveSettings()
    recent = RecentItems(settings)
    repositories = Repositories(nothing, lambda: beats.is_fresh, recent, settings)  # type: ignore[arg-type]
    look_ups = LookUps(nothing, per_round_trip_max=9, wait_seconds_max=9)  # type: ignore[arg-type]
    return Artifacts(nothing, look_ups, nothing, repositories, settings, Metrics(), recent, beats)  # type: ignore[arg-type]


def unreachable() -> LookUp:
    raise CatalogueUnavailable("Postgres does not answer")


async def test_what_was_found_lately_is_found_again_while_postgres_does_not_answer(
    artifacts: Artifacts, beats: Beats, catalogue: Catalogue
) -> None:
    assert (await artifacts.get_lately(AT)).stale_seconds is None
    catalogue.answer, beats.silence_seconds = unreachable, 60.0
    found = await artifacts.get_lately(AT)
    assert found.item is ITEM
    assert found.stale_seconds is not None


async def test_what_postgres_says_is_gone_is_not_found_in_memory_while_no_heartbeat_comes_back(
    artifacts: Artifacts, beats: Beats, catalogue: Catalogue
) -> None:
    await artifacts.get_lately(AT)
    beats.is_fresh, catalogue.answer = False, lambda: ABSENT
    with pytest.raises(CatalogueUnavailable, match="absent"):
        await artifacts.get_lately(AT)
    # Nor when nothing at all is heard after that.
    catalogue.answer = unreachable
    with pytest.raises(CatalogueUnavailable, match="does not answer"):
        await artifacts.get_lately(AT)


async def test_what_postgres_says_is_gone_just_when_heartbeats_end_is_not_asked_again_nor_found_in_memory(
    artifacts: Artifacts, beats: Beats, catalogue: Catalogue
) -> None:
    await artifacts.get_lately(AT)

    def gone() -> LookUp:
        beats.is_fresh = False
        return ABSENT

    catalogue.answer = gone
    with pytest.raises(CatalogueUnavailable, match="absent"):
        await artifacts.get_lately(AT)
    assert catalogue.asked == 2


async def test_a_pool_without_a_connection_is_no_reason_to_read_from_memory_while_heartbeats_come_back(
    artifacts: Artifacts, beats: Beats, catalogue: Catalogue
) -> None:
    await artifacts.get_lately(AT)
    catalogue.answer = unreachable
    with pytest.raises(CatalogueUnavailable, match="does not answer"):
        await artifacts.get_lately(AT)
    # One that was heard of on a connection that has ended by now says nothing any more.
    beats.is_fresh = False
    assert (await artifacts.get_lately(AT)).item is ITEM


@pytest.mark.parametrize("fresh", [True, False])
async def test_the_services_say_that_something_is_absent_only_while_heartbeats_come_back(
    artifacts: Artifacts, beats: Beats, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    async def nothing(*_: object, **__: object) -> None:
        return None

    async def repository(*_: object) -> Repository:
        return Repository(id=1, key="r", rclass="local", package_type="generic", created_at=EPOCH)

    beats.is_fresh, catalogue.answer = fresh, lambda: ABSENT
    wanted, by = NotFound if fresh else AbsenceInDoubt, {"by": Origin("u", "q")}
    monkeypatch.setattr(rows, "delete", nothing)
    monkeypatch.setattr(repository_rows, "find", repository)
    for work in (artifacts.get(AT), artifacts.delete(AT, **by)):
        with pytest.raises(wanted):
            await work
    for name in ("find", "delete", "change"):
        monkeypatch.setattr(repository_rows, name, nothing)
    repositories = artifacts._repositories
    for work in (
        anext(Trees(artifacts._database, repositories, artifacts._settings).children(AT, EVERYTHING)),
        artifacts.make_folder(AT, **by),
        repositories.get("r"),
        repositories.recall("r"),
        repositories.delete("r", **by),
        repositories.change("r", {"trash": False}, **by),
    ):
        with pytest.raises(wanted):
            await work
