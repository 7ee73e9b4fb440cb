"""S18: what is read out of archives that nobody trusts, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import tarfile
from asyncio.subprocess import Process
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.errors import BodyTooLarge, Overloaded, RequestError
from repo_node.unpacking.frames import Kind, Limits, Member, frame, pack
from repo_node.unpacking.process import Unpacking, unpacking
from repo_node.unpacking.reading import ArchiveTooLarge, BadArchive, data_of, entries
from tests.repo_node import archive_files as made

LIMITS = Limits(entries_max=1_000, bytes_max=1 << 30, ratio_max=100, memory_bytes_max=256 << 20, seconds_max=20)
NAMES = st.lists(st.text("abcé. ", min_size=1, max_size=60), min_size=1, max_size=4).map("/".join)


def read(kind: str, data: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    kind = "tar.gz" if kind == "tgz" else kind
    found = entries(kind, io.BytesIO(data), len(data), limits)
    return {entry[0].name: b"".join(data_of(entry)) for entry in found}


@given(st.sampled_from(made.KINDS), st.dictionaries(NAMES, st.binary(max_size=3000), max_size=8))
def test_a_tree_comes_out_as_it_was_packed(kind: str, files: dict[str, bytes]) -> None:
    assert read(kind, made.packed(kind, files)) == files


@given(st.sampled_from(made.KINDS), st.data())
def test_an_archive_cut_off_anywhere_is_refused(kind: str, draw: st.DataObject) -> None:
    data = made.packed(kind, {"a": bytes(range(250)) * 6, "b": b"y" * 700})
    # What tar writes behind its end only fills it up.
    end = data.rindex(b"y") + 325 + 512 if kind == "tar" else len(data)
    cut = int(draw.draw(st.floats(0, 1, exclude_max=True)) * end)
    with pytest.raises(Exception):  # noqa: B017 -- whatever its reader raises; the process tells it as a refusal
        read(kind, data[:cut])


@given(st.sampled_from(made.KINDS), st.data())
def test_a_damaged_archive_gives_its_files_right_or_none(kind: str, draw: st.DataObject) -> None:
    files = {"a": bytes(range(256)) * 6, "b": b"y" * 700}
    data = bytearray(made.packed(kind, files))
    data[int(draw.draw(st.floats(0, 1, exclude_max=True)) * len(data))] ^= 1 << draw.draw(st.integers(0, 7))
    try:
        found = read(kind, bytes(data))
    except Exception:
        return
    # A tar has no sums of its data: there a flipped bit is content.
    assert kind == "tar" or all(content in files.values() for content in found.values())


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("zip", made.zip_with_link(), "link or a device"),
        ("zip", made.encrypted_zip(), "encrypted"),
        ("zip", made.overlapping_zip(50, 10_000), "shares its bytes"),
        ("zip", made.quoted_overlap_zip(), "shares its bytes"),
        ("tar", made.tar_of(made.tar_info("l", tarfile.SYMTYPE, "/etc/passwd")), "link, a device"),
        (
            "tar",
            made.tar_of(made.tar_info("l", tarfile.SYMTYPE, "/etc"), made.tar_info("h", tarfile.LNKTYPE, "l")),
            "link, a device",
        ),
        ("tar", made.tar_of(made.tar_info("a"), made.tar_info("h", tarfile.LNKTYPE, "a")), "link, a device"),
        ("tar", made.tar_of(made.tar_info("d", tarfile.CHRTYPE)), "link, a device"),
        ("tar", made.tar_of(made.tar_info("f", tarfile.FIFOTYPE)), "link, a device"),
        ("tar", made.negative_size_tar(), "size that cannot be"),
        ("tar", b"", "damaged or cut off"),
        ("tar", os.urandom(4096), "damaged or cut off"),
    ],
)
def test_s18_what_is_no_plain_file_is_refused(kind: str, data: bytes, why: str) -> None:
    with pytest.raises(BadArchive, match=why):
        read(kind, data)


def test_a_tar_with_a_damaged_header_in_its_middle_is_refused() -> None:
    data = bytearray(made.packed("tar", {"a": b"x" * 100, "b": b"y" * 100, "c": b"z"}))
    data[1024] ^= 0xFF
    with pytest.raises(BadArchive, match="damaged"):
        read("tar", bytes(data))


@pytest.mark.parametrize("kind", made.KINDS)
def test_s18_the_limits_hold(kind: str) -> None:
    many = made.packed(kind, {f"{number}": b"" for number in range(30)})
    with pytest.raises(ArchiveTooLarge, match="explode_entries_max"):
        read(kind, many, Limits(29, 1 << 30, 100, 0, 0))
    large = made.packed(kind, {"a": os.urandom(3000), "b": os.urandom(3000)})
    with pytest.raises(ArchiveTooLarge, match="explode_bytes_max"):
        read(kind, large, Limits(29, 5999, 100, 0, 0))
    assert len(read(kind, large, Limits(29, 1 << 20, 1, 0, 0))) == 2


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_s18_a_bomb_is_refused_before_it_is_unpacked(kind: str) -> None:
    bomb = made.packed(kind, {"zeros": bytes(32 << 20)})
    with pytest.raises(ArchiveTooLarge, match="explode_ratio_max"):
        read(kind, bomb)


def test_s18_a_bomb_behind_the_end_of_a_tar_is_refused() -> None:
    with pytest.raises(ArchiveTooLarge, match="explode_ratio_max"):
        read("tgz", gzip.compress(made.packed("tar", {"a": b"a"}) + bytes(64 << 20)))


# ---------------------------------------------------------------- in its own process


async def unpack(path: Path, kind: str, limits: Limits = LIMITS) -> dict[str, bytes]:
    with path.open("rb") as file:
        async with unpacking(kind, file.fileno(), limits) as archive:
            members = await archive.members()
            return {member.name: b"".join([piece async for piece in archive.data(member)]) for member in members}


async def test_a_process_gives_what_is_in_it(tmp_path: Path) -> None:
    files = {"a": b"", "sub/large": os.urandom(3 << 20), "sub/é": b"content"}
    (tmp_path / "a").write_bytes(made.packed("tar.gz", files))
    assert await unpack(tmp_path / "a", "tar.gz") == files


async def test_s18_a_process_that_needs_too_much_memory_ends(tmp_path: Path) -> None:
    """A header with a name as long as the memory: its reader would hold all of it."""
    info = tarfile.TarInfo("a")
    info.pax_headers = {"comment": "x" * (96 << 20)}
    (tmp_path / "a").write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024), 1))
    with pytest.raises(BodyTooLarge, match="explode_memory_bytes_max"):
        await unpack(tmp_path / "a", "tar.gz", Limits(10, 1 << 30, 10_000, 64 << 20, 20))


async def test_s18_a_process_that_takes_too_long_ends(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(made.packed("tar", {"a": os.urandom(8 << 20)}))
    with (tmp_path / "a").open("rb") as file:
        async with unpacking("tar", file.fileno(), LIMITS) as archive:
            [member] = await archive.members()
            archive._process.send_signal(signal.SIGSTOP)
            archive._deadline = asyncio.get_running_loop().time()
            with pytest.raises(BodyTooLarge, match="explode_seconds_max"):
                _ = [piece async for piece in archive.data(member)]


async def test_a_process_that_dies_is_no_end_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(made.packed("tar", {"a": os.urandom(8 << 20)}))
    with (tmp_path / "a").open("rb") as file:
        async with unpacking("tar", file.fileno(), LIMITS) as archive:
            [member] = await archive.members()
            archive._process.kill()
            with pytest.raises(RequestError):
                _ = [piece async for piece in archive.data(member)]
            assert member == Member("a", 8 << 20)


# ---------------------------------------------------------------- a process that its archive has taken over


MEMBER = frame(Kind.MEMBER, pack(Member("a", 3)))


@pytest.mark.parametrize(
    "told",
    [
        frame(Kind.MEMBER, b"no json"),
        frame(Kind.MEMBER, b'{"name": "a", "size": -1}'),
        frame(Kind.MEMBER, b"[]"),
        frame(Kind.REFUSED, b"{}"),
        frame(Kind.REFUSED, b'{"message": "x", "reason": "y"}'),
        b"\xff\x00\x00\x00\x00",
        b"\x01\xff\xff\xff\xff",
        MEMBER * 1_001 + frame(Kind.CHECKED),
        MEMBER + frame(Kind.CHECKED) + MEMBER + frame(Kind.DATA, b"more"),
        MEMBER + frame(Kind.CHECKED) + MEMBER + frame(Kind.DATA, b""),
        MEMBER + frame(Kind.CHECKED) + frame(Kind.MEMBER, pack(Member("b", 3))),
        MEMBER + frame(Kind.CHECKED) + frame(Kind.DATA, b"abc"),
        MEMBER + frame(Kind.CHECKED) + MEMBER + frame(Kind.END),
    ],
)
async def test_what_makes_no_sense_is_a_refusal(told: bytes) -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(told)
    stream.feed_eof()
    archive = Unpacking(cast(Process, SimpleNamespace(stdout=stream)), LIMITS)
    with pytest.raises(RequestError) as refused:
        for member in await archive.members():
            _ = [piece async for piece in archive.data(member)]
    assert refused.value.status == 400


async def test_a_disk_that_does_not_give_the_archive_back_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(made.packed("tar", {"a": b"a"}))
    unreadable = os.open(tmp_path / "a", os.O_WRONLY)
    try:
        async with unpacking("tar", unreadable, LIMITS) as archive:
            with pytest.raises(Overloaded, match="this node's disk"):
                await archive.members()
    finally:
        os.close(unreadable)
