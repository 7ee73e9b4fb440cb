from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.cli.progress import say_progress
from repo_node.cli.wording import parse_duration, printable, say_bytes, say_count, say_seconds


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3.0 PiB"),
    ],
)
def test_bytes_are_said_in_binary_units(count: int, words: str) -> None:
    assert say_bytes(count) == words


@given(st.integers(0, 1 << 62))
def test_bytes_are_said_briefly_and_nearly_right(count: int) -> None:
    number, unit = say_bytes(count).split(" ")
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(float(number.replace(",", "")) * scale - count) <= 0.051 * scale


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert say_seconds(seconds) == words


def test_counts_are_said_with_their_noun() -> None:
    assert [say_count(count, "file") for count in (0, 1, 12345)] == ["0 files", "1 file", "12,345 files"]
    assert [say_count(count, "copy", "copies") for count in (1, 2)] == ["1 copy", "2 copies"]


@given(st.text(st.characters()))
def test_what_is_printed_cannot_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert text == shown or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("2W", 1_209_600)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "1.5h", "-1d", "0s", "1y", "1d2h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write for example 90s"):
        parse_duration(text)


def test_progress_is_said_with_rate_and_time_left() -> None:
    assert say_progress(1 << 30, 3 << 30, 8) == "1.0 GiB of 3.0 GiB, 128.0 MiB/s, 16 s left"
    assert say_progress(0, 3 << 30, 8) == "0 B of 3.0 GiB, 0 B/s"
