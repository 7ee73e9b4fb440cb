"""Reports packed and put together: what comes from a peer is bounded and named as it should be."""

from __future__ import annotations

import io
import math
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.support.packing import BadReport, Packer, pack, unpack
from repo_node.support.wish import DUMPS_MAX, INTERVAL_MILLISECONDS_MAX, LOG_BYTES_MAX, Wish, read_wish

NAMES = st.sampled_from(["a.txt", "b/c-d.json", "nodes/node-1.example/process-0/log.txt", "0/x"])


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=("Cs",))), max_size=5))
def test_files_come_out_as_they_went_in(files: dict[str, str]) -> None:
    assert unpack(pack(files)) == files


@pytest.mark.parametrize("name", ["../up", "/top", "a/../b", "a\\b", "x" * 300])
def test_a_name_that_no_node_gives_is_refused(name: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(BadReport):
        unpack(packed.getvalue())


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"<html>", pack({"a": "x" * 1000})[:-30]], ids=["nothing", "a beginning", "a page", "cut"]
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BadReport):
        unpack(data)


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_is_damaged_in_an_archive_is_refused_or_nothing_of_it_matters(
    damages: list[tuple[float, int]],
) -> None:
    data = bytearray(pack({"a/log.txt": "a line of a log\n" * 50, "b.txt": "x" * 300}))
    for place, value in damages:
        data[int(place * len(data))] = value
    with suppress(BadReport):
        unpack(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_what_is_packed_in_a_way_that_no_node_packs_is_refused(method: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(BadReport):
        unpack(packed.getvalue())


def test_an_encrypted_archive_and_one_whose_bytes_are_no_stream_are_refused() -> None:
    data = pack({"a.txt": "x" * 300})
    where = data.index(b"a.txt")
    encrypted = bytearray(data)
    # The flags, in the file's head and in the directory.
    encrypted[6] |= 1
    encrypted[data.index(b"PK\x01\x02") + 8] |= 1
    broken = data[: where + 5] + b"\xff" * 4 + data[where + 9 :]
    for bad in (bytes(encrypted), broken):
        with pytest.raises(BadReport):
            unpack(bad)


def test_what_would_be_unpacked_into_too_much_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo_node.support.packing.UNPACKED_BYTES_MAX", 1000)
    with pytest.raises(BadReport):
        unpack(pack({"a.txt": "0" * 600, "b.txt": "0" * 600}))


def test_a_bundle_takes_reports_as_long_as_there_is_room() -> None:
    report = pack({"a.txt": "text"})
    packer = Packer(2 * len(report))
    assert packer.take("nodes/n-1", report) == ""
    assert "support_bundle_bytes_max" in packer.take("nodes/n-2", report + bytes(len(report)))
    packer.add("bundle.json", "{}")
    assert unpack(bytes(packer.close())) == {"nodes/n-1/a.txt": "text", "bundle.json": "{}"}


@given(
    st.builds(
        Wish,
        configuration=st.booleans(),
        system=st.booleans(),
        logs=st.booleans(),
        since=st.floats(0, 1e12),
        until=st.floats(0, 1e12) | st.just(math.inf),
        log_bytes_max=st.integers(0, LOG_BYTES_MAX),
        dumps=st.integers(0, DUMPS_MAX),
        interval_milliseconds=st.integers(0, INTERVAL_MILLISECONDS_MAX),
    )
)
def test_a_wish_is_understood_as_it_was_told(wish: Wish) -> None:
    assert read_wish(wish.to_query()) == wish


def test_a_wish_of_another_release_is_understood_and_bounded() -> None:
    assert read_wish({"of_later": "1"}) == Wish()
    assert read_wish({"dumps": "1000", "interval_milliseconds": "99999"}).dumps == DUMPS_MAX
    with pytest.raises(ValueError):
        read_wish({"dumps": "many"})
