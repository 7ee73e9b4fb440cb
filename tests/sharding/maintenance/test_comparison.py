"""Rows and files side by side, whatever the pages: nothing is left out, nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.listing import FoundReplica
from sharding.maintenance import comparison
from sharding.maintenance.comparison import Comparison, Page, Row, RowState
from sharding.model import BlobName, Generation, ShardId

SHARD = ShardId(1)


def generation(number: int) -> Generation:
    return Generation(UUID(int=number))


def digest(number: int) -> bytes:
    return bytes([number % 256]) * 32


class Listing:
    """Files in memory."""

    def __init__(self, files: list[FoundReplica]) -> None:
        self.files = files
        self.oddities: list[Any] = []
        self.oddities_beyond = 0
        self.replicas_count = len(files)

    def replicas(self) -> Iterator[FoundReplica]:
        return iter(self.files)

    def close(self) -> None:
        pass


class Shard:
    id = SHARD

    def __init__(self, files: list[FoundReplica]) -> None:
        self._listing = Listing(files)

    def listing(self) -> Any:
        return self._listing

    async def list_next(self, _: Any) -> bool:
        return False


class Source:
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    async def known(self, shard: ShardId, after: Generation, count: int) -> list[Row]:
        return [row for row in self._rows if row.generation > after][:count]


def file(number: int, content: int | None = None) -> FoundReplica:
    return FoundReplica(BlobName(digest(number if content is None else content), generation(number)), number)


def row(number: int, state: RowState = RowState.LIVE) -> Row:
    return Row(generation(number), state, digest(number), 10)


async def compare(rows: list[Row], files: list[FoundReplica]) -> list[Page]:
    one = Comparison(Shard(files), Source(rows))  # type: ignore[arg-type]
    assert not await one.list_some()
    pages = []
    while (page := await one.next_page()) is not None:
        pages.append(page)
    assert await one.next_page() is None
    return pages


@settings(max_examples=60)
@given(
    st.sets(st.integers(1, 60)),
    st.lists(st.integers(1, 60), max_size=60),
    st.integers(1, 7),
    st.integers(1, 7),
)
async def test_pages_hold_everything_once(known: set[int], found: list[int], page: int, files_max: int) -> None:
    rows = [row(number) for number in sorted(known)]
    # Several files of one generation: names that differ in their content.
    files = [file(number, content) for content, number in sorted(enumerate(found), key=lambda one: one[1])]
    with mock.patch.multiple(comparison, PAGE=page, FILES_MAX=files_max):
        pages = await compare(rows, files)
    assert [one for each in pages for one in each.rows] == rows
    assert [one for each in pages for one in each.files] == files
    for each in pages:
        inside = {one.generation for one in each.rows} | {one.name.generation for one in each.files}
        others = {one.generation for other in pages if other is not each for one in other.rows}
        assert not inside & others, "a generation is on one page alone"


@pytest.mark.parametrize("state", RowState)
async def test_absence_concerns_live_rows_alone(state: RowState) -> None:
    [page] = await compare([row(1, state), row(2)], [file(2)])
    assert page.absent() == ([row(1, state)] if state is RowState.LIVE else [])


@pytest.mark.parametrize("state", RowState)
async def test_file_with_any_row_is_no_stray(state: RowState) -> None:
    [page] = await compare([row(1, state)], [file(1), file(2)])
    assert page.strays() == [file(2)]


async def test_file_of_another_content_under_a_rows_generation_is_misnamed() -> None:
    [page] = await compare([row(1)], [file(1, content=9)])
    assert (page.absent(), page.strays(), page.misnamed()) == ([row(1)], [], [file(1, content=9)])
    [page] = await compare([Row(generation(1), RowState.CONDEMNED, b"", None)], [file(1)])
    assert page.misnamed() == [], "that row does not say"


async def test_files_of_one_generation_are_one_stray_and_the_others_misnamed() -> None:
    [page] = await compare([], [file(1, content=5), file(1, content=9)])
    assert page.strays() == [file(1, content=5)]
    assert page.misnamed() == [file(1, content=9)]


@pytest.mark.parametrize("state", RowState)
async def test_file_set_aside_that_is_back_is_told(state: RowState) -> None:
    [page] = await compare([row(1, state)], [file(1)])
    assert page.returned() == ([file(1)] if state is RowState.ASIDE else [])
    assert page.present() == ([row(1)] if state is RowState.LIVE else [])
