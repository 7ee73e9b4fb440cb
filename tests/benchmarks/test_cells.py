"""Cells: their grammar, their aims, the order in which they are measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cells import (
    AIMS,
    CONCURRENCY_MAX,
    MIB,
    Aim,
    Cell,
    Operation,
    Way,
    format_size,
    parse_cell,
    parse_cells,
    parse_size,
    phases,
    stock_objects,
)

SIZES = st.integers(1, 4 << 30)


@given(SIZES)
def test_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.sampled_from(Operation), SIZES, st.integers(1, CONCURRENCY_MAX), st.sampled_from(Way))
def test_cell_is_read_as_it_is_written(operation: Operation, size: int, concurrency: int, way: Way) -> None:
    cell = Cell(operation, size, concurrency, way)
    if operation is Operation.DELETE or (cell.is_upload and way not in (Way.SPREAD, Way.ONE)):
        with pytest.raises(ValueError, match="uploads|deletions"):
            parse_cell(str(cell))
    else:
        assert parse_cell(str(cell)) == cell


@pytest.mark.parametrize("text", ["", "put", "put:4KiB", "put:4:16", "put:4KiB:0", "get:4KiB:16:far", "a:4KiB:1:hot:x"])
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write for example|a size is"):
        parse_cells(text)


def test_phases_keep_every_cell_and_their_order() -> None:
    uploads, downloads, memory = phases(list(AIMS))
    assert sorted(uploads + downloads + memory) == sorted(AIMS)
    assert all(cell.is_upload for cell in uploads)
    assert not any(cell.is_upload for cell in downloads)
    assert all(cell.way is Way.ONE for cell in memory)


def test_titles_tell_cells_apart() -> None:
    assert len({cell.title for cell in AIMS}) == len(AIMS)


def test_aim_is_a_bound_from_either_side() -> None:
    assert Aim("x", 2, "u").is_reached(2)
    assert not Aim("x", 2, "u").is_reached(2.1)
    assert Aim("x", 2, "u", at_least=True).is_reached(3)
    assert not Aim("x", 2, "u", at_least=True).is_reached(1.9)


@pytest.mark.parametrize(
    ("size", "artifacts", "objects"), [(4096, 100_000, 100_000), (MIB, 100_000, 1024), (64 * MIB, 10, 10)]
)
def test_stock_of_large_objects_is_bounded(size: int, artifacts: int, objects: int) -> None:
    assert stock_objects(size, artifacts) == objects
