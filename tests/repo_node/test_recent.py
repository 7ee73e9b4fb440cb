"""What a node remembers of artifacts for the time without Postgres: bounded, and forgotten when it changes."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from repo_node.db.artifacts import Blob, Item
from repo_node.paths import ArtifactPath
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings, Settings
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES

EPOCH = datetime(2031, 5, 4, tzinfo=UTC)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def at(path: str) -> ArtifactPath:
    folder, _, name = path.rpartition("/")
    return ArtifactPath("r", folder, name)


def item(path: str, *, size: int = 5, digests: int = 1, is_folder: bool = False) -> Item:
    place = at(path)
    blob = Blob(1, uuid4(), size, b"", b"", b"", bytes(digests * BLOCK_DIGEST_BYTES), ())
    found = None if is_folder else blob
    return Item("r", place.folder, place.name, EPOCH, "u", EPOCH, "u", EPOCH, {}, found)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> RecentItems:
    return RecentItems(LiveSettings(Settings(stale_entries_max=3, stale_seconds_max=300)), clock=clock)


def keep(recent: RecentItems, *paths: str, asked_at: float = 999.0) -> None:
    for path in paths:
        recent.keep(at(path), item(path), recent.mark(at(path)), asked_at)


def known(recent: RecentItems, *paths: str) -> list[str]:
    return [path for path in paths if recent.find(at(path)) is not None]


def test_what_was_kept_is_found_with_its_age_until_it_is_too_old(recent: RecentItems, clock: Clock) -> None:
    keep(recent, "a", asked_at=clock.now)
    clock.now += 12
    found = recent.find(at("a"))
    assert found is not None
    assert (found.item.name, found.stale_seconds) == ("a", 12)
    clock.now += 288
    assert recent.find(at("a")) is None


def test_those_not_read_for_longest_make_room(recent: RecentItems) -> None:
    keep(recent, "a", "b", "c", "a", "d")
    assert known(recent, "a", "b", "c", "d") == ["a", "c", "d"]
    assert len(recent) == 3


def test_what_changed_while_it_was_asked_for_is_not_kept(recent: RecentItems) -> None:
    mark = recent.mark(at("f/a"))
    recent.forget(at("f/a"))
    recent.keep(at("f/a"), item("f/a"), mark, 1000.0)
    mark = recent.mark(at("f/b"))
    recent.forget_tree(at("f"))
    recent.keep(at("f/b"), item("f/b"), mark, 1000.0)
    assert known(recent, "f/a", "f/b") == []
    keep(recent, "f/a", asked_at=1001.0)
    assert known(recent, "f/a") == ["f/a"]


def test_what_is_not_kept_because_of_a_change_beside_it_leaves_no_older_version_behind(
    recent: RecentItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(recent, "a")
    before = recent.mark(at("a"))
    monkeypatch.setattr(recent, "mark", lambda _: before + 1)  # another path of the same group has changed
    recent.keep(at("a"), item("a", size=6), before, 1001.0)
    assert known(recent, "a") == []


def test_a_folder_is_forgotten_with_all_below_it_and_nothing_beside_it(clock: Clock) -> None:
    recent = RecentItems(LiveSettings(), clock=clock)
    paths = ["f/a", "f/g/b", "f", "fg/a", "e/f/a"]
    keep(recent, *paths)
    recent.forget_tree(at("f"))
    assert known(recent, *paths) == ["fg/a", "e/f/a"]
    recent.forget_tree(ArtifactPath("other", "", ""))
    assert known(recent, *paths) == ["fg/a", "e/f/a"]
    recent.forget_tree(ArtifactPath("r", "", ""))
    assert known(recent, *paths) == []
    keep(recent, *paths, asked_at=clock.now + 1)
    assert known(recent, *paths) == paths


def test_after_more_deletions_than_it_can_note_nothing_from_before_is_found(recent: RecentItems, clock: Clock) -> None:
    keep(recent, "a")
    for path in ("w", "x", "y"):
        recent.forget_tree(at(path))
    assert known(recent, "a") == ["a"]
    recent.forget_tree(at("z"))
    assert known(recent, "a") == []
    keep(recent, "a", asked_at=clock.now + 1)
    assert known(recent, "a") == ["a"]


@pytest.mark.parametrize(
    "other", [item("a", is_folder=True), item("a", size=300 * BLOCK_BYTES, digests=256)], ids=["folder", "large"]
)
def test_what_could_not_be_read_to_its_end_is_not_kept_nor_what_was_before_it(recent: RecentItems, other: Item) -> None:
    keep(recent, "a")
    recent.keep(at("a"), other, recent.mark(at("a")), 1000.0)
    assert len(recent) == 0


def test_a_limit_of_none_keeps_none(clock: Clock) -> None:
    for settings in (Settings(stale_entries_max=0), Settings(stale_seconds_max=0)):
        recent = RecentItems(LiveSettings(settings), clock=clock)
        keep(recent, "a")
        assert len(recent) == 0


def places(name: str) -> tuple[ArtifactPath, ...]:
    return tuple(ArtifactPath(key, "f", name) for key in ("one", "two", "three"))


def keep_of(recent: RecentItems, name: str) -> tuple[ArtifactPath, ...]:
    first, *others = places(name)
    recent.keep(first, item(f"f/{name}"), recent.mark(first, *others), 999.0, *others)
    return places(name)


def test_what_is_kept_of_several_places_is_found_of_exactly_these(recent: RecentItems) -> None:
    several = keep_of(recent, "a")
    assert recent.find(*several) is not None
    for others in (several[:2], several[1:], several[::-1], several[:1]):
        assert recent.find(*others) is None, "another may have had it first, or may not be read"


@pytest.mark.parametrize("place", range(3))
def test_a_change_at_one_of_several_places_ends_what_is_kept_of_them(recent: RecentItems, place: int) -> None:
    several, beside = keep_of(recent, "a"), keep_of(recent, "b")
    mark = recent.mark(*several)
    recent.forget(several[place])
    assert recent.find(*several) is None and recent.find(*beside) is not None
    recent.keep(several[0], item("f/a"), mark, 999.0, *several[1:])
    assert recent.find(*several) is None, "asked for before the change"
    recent.forget_tree(ArtifactPath(beside[place].repository, "", "f"))
    assert recent.find(*beside) is None


def test_what_is_dropped_for_room_leaves_nothing_behind(recent: RecentItems) -> None:
    for name in "abcdef":
        keep_of(recent, name)
    assert len(recent) == 3
    assert sum(map(len, recent._shared.values())) == 3
