"""The order of versions: numbers as numbers, and what comes before a release before it. Pure."""

from __future__ import annotations

import re

PARTS = re.compile(r"\d+|[a-z]+")
BEFORE = {
    "snapshot": -1,
    "rc": -2,
    "cr": -2,
    "milestone": -3,
    "m": -3,
    "beta": -4,
    "b": -4,
    "alpha": -5,
    "a": -5,
    "dev": -6,
}
RELEASE = frozenset({"final", "ga", "release"})


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are sorted by: ``1.9 < 1.10-rc1 < 1.10 = 1.10.0 < 1.10.1``. Equal keys are one version."""
    key: list[tuple[int, int, str]] = []
    for part in PARTS.findall(version.lower()):
        if part in RELEASE:
            continue
        if not part.isdigit():
            drop_zeros(key)
        key.append(part_key(part))
    drop_zeros(key)
    # What ends comes after every qualifier that announces a release, and before everything else.
    return (*key, (0, 0, ""))


def drop_zeros(key: list[tuple[int, int, str]]) -> None:
    while key and key[-1] == (1, 0, ""):
        key.pop()


def part_key(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return (1, int(part), "") if len(part) <= 18 else (1, 10**18, part)
    if part in BEFORE:
        return (-1, BEFORE[part], "")
    return (0, 1, part)


def is_snapshot(version: str) -> bool:
    return version.upper().endswith("-SNAPSHOT")
