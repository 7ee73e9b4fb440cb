"""What a virtual repository shows and in which order, and how sorted pages become one: pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node import merging
from repo_node.db.paging import PAGE
from repo_node.db.repositories import Repository
from repo_node.merging import merged
from repo_node.paths import ArtifactPath
from repo_node.trees import SHARE_MIN, share_of
from repo_node.views import make_view

AT = ArtifactPath("v", "a", "b")


def local(key: str, **more: Any) -> Repository:
    when = datetime.now(UTC)
    return Repository(id=len(key), key=key, rclass="local", package_type="generic", created_at=when, **more)


def virtual(key: str, *members: str, **more: Any) -> Repository:
    when = datetime.now(UTC)
    return Repository(id=1, key=key, rclass="virtual", package_type="generic", created_at=when, members=members, **more)


def looked_at(top: Repository, *found: Repository, at: ArtifactPath = AT) -> list[str]:
    """Return where an artifact is looked for."""
    return [place.repository for place in make_view(top, found).places(at)]


def test_members_are_looked_through_in_their_order() -> None:
    assert looked_at(virtual("v", "one", "two"), local("two"), local("one"), local("other")) == ["one", "two"]


def test_s28_members_with_priority_come_first_also_those_of_members() -> None:
    members = [local("one"), local("two", priority=True), virtual("w", "three"), local("three", priority=True)]
    assert looked_at(virtual("v", "one", "w", "two"), *members) == ["three", "two", "one"]


def test_the_patterns_of_all_on_the_way_hold() -> None:
    members = [virtual("w", "one", excludes_pattern="a/**"), local("one"), local("two", includes_pattern="b/**")]
    top = virtual("v", "w", "two", includes_pattern="**/b")
    assert looked_at(top, *members) == []
    assert looked_at(top, *members, at=ArtifactPath("v", "b", "b")) == ["one", "two"]
    assert looked_at(top, *members, at=ArtifactPath("v", "b", "c")) == []


def test_each_repository_counts_where_it_is_met_first_and_circles_end() -> None:
    members = [virtual("w", "one", "v", "x"), virtual("x", "w", "two"), local("one"), local("two")]
    assert looked_at(virtual("v", "w", "one", "x", "two", "gone"), *members) == ["one", "two"]


async def pages_of(items: Sequence[tuple[int, str]], size: int) -> AsyncGenerator[Sequence[tuple[int, str]], None]:
    yield []
    for start in range(0, len(items), size):
        yield items[start : start + size]


@given(sources=st.lists(st.sets(st.integers(0, 30)), max_size=4), size=st.integers(1, 5), page=st.integers(1, 7))
async def test_merged_pages_have_everything_once_in_order_and_the_first_source_wins(
    sources: list[set[int]], size: int, page: int
) -> None:
    named = [[(number, f"{place}") for number in sorted(one)] for place, one in enumerate(sources)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "PAGE", page)
        found = [list(one) async for one in merged([pages_of(one, size) for one in named], itemgetter(0))]
    wanted: dict[int, str] = {}
    for one in named:
        for number, name in one:
            wanted.setdefault(number, name)
    assert [item for one in found for item in one] == sorted(wanted.items())
    assert all(len(one) == page for one in found[:-1]) and len(found[-1]) < page


@pytest.mark.parametrize("sources", [0, 1, 7, 50, 10_000])
def test_pages_of_many_sources_share_the_memory_of_one(sources: int) -> None:
    rows = share_of(sources)
    assert SHARE_MIN <= rows <= PAGE
    assert rows == SHARE_MIN or rows * sources <= PAGE
