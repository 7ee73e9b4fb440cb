"""Figures and names as people read them: binary units, short durations, nothing that could steer a terminal."""

from __future__ import annotations

import re

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SIZE = re.compile(rf"([0-9]{{1,15}}(?:\.[0-9]{{1,6}})?)\s*({'|'.join(UNITS)})?")
DURATION = re.compile(r"(\d+)\s*([smhdw])")
DURATION_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def say_bytes(count: float) -> str:
    """Return ``count`` bytes in binary units with three digits or so: ``0 B``, ``812 B``, ``1.4 GiB``."""
    value = float(count)
    for unit in UNITS:
        # 1023.95 and more would be rounded to 1024.0.
        if abs(value) < 1023.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} PiB"


def say_seconds(seconds: float) -> str:
    """Return a duration in its two largest units: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def say_count(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 file``, ``2 files``, ``12,345 files``; ``plural`` is that of a noun that takes no s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {plural or noun + 's'}"


def printable(text: str) -> str:
    """Return ``text`` on one line, with every character that a terminal would not simply show written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def parse_bytes(text: str) -> int:
    """Return the bytes that ``4096``, ``100MiB``, ``1.5GiB`` or ``2 TiB`` mean. Raises ``ValueError``."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{printable(text)} is no size; write for example 4096, 100MiB or 1.5GiB")
    return int(float(found[1]) * 1024 ** UNITS.index(found[2] or "B"))


def parse_duration(text: str) -> int:
    """Return the seconds that ``90s``, ``15m``, ``12h``, ``30d`` or ``2w`` mean. Raises ``ValueError``."""
    match = DURATION.fullmatch(text.strip().lower())
    seconds = int(match[1]) * DURATION_SECONDS[match[2]] if match else 0
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 15m, 12h, 30d or 2w")
    return seconds


def say_copies(count: int, *, is_counted: bool, unit: bool = False) -> str:
    """Return a number of copies as people read it, ``unit`` or not; one that was not counted is about right."""
    text = say_count(count, "copy", "copies") if unit else f"{count:,}"
    return text if is_counted else f"~{text}"
