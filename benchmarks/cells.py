"""What is measured: one cell is an operation, a size and a concurrency. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

UNITS = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
SIZES = (4 << 10, 64 << 10, 1 << 20, 64 << 20)
CONCURRENCIES = (1, 16, 64)
JUDGED_CONCURRENCY = 16
SIZE_BYTES_MAX = 4 << 30
CONCURRENCY_MAX = 1024


class Operation(StrEnum):
    """What a client does in a cell."""

    PUT = "put"
    GET = "get"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One operation on objects of ``size`` bytes, by ``concurrency`` clients at a time."""

    operation: Operation
    size: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.operation}:{format_size(self.size)}:{self.concurrency}"

    @property
    def aim(self) -> Aim | None:
        """What this cell has to reach, where it is judged at all."""
        return AIMS.get(self)


@dataclass(frozen=True, slots=True)
class Aim:
    """The most that ``metric``, a field of ``report.Figures``, may be."""

    metric: str
    most: float
    unit: str


AIMS = {
    Cell(Operation.PUT, 4 << 10, 16): Aim("cpu_seconds_per_1000", 3.0, "CPU-s/1,000"),
    Cell(Operation.GET, 4 << 10, 16): Aim("cpu_seconds_per_1000", 1.0, "CPU-s/1,000"),
    Cell(Operation.PUT, 64 << 20, 16): Aim("cpu_seconds_per_gb", 7.0, "CPU-s/GB"),
    Cell(Operation.GET, 64 << 20, 16): Aim("cpu_seconds_per_gb", 1.6, "CPU-s/GB"),
    Cell(Operation.PUT, 64 << 20, 64): Aim("peak_rss_mib", 250.0, "MiB a node"),
}


def all_cells(concurrencies: Sequence[int] = CONCURRENCIES) -> list[Cell]:
    """Return every size and operation at ``concurrencies``; uploads come before downloads of the same size."""
    return [Cell(operation, size, count) for size in SIZES for operation in Operation for count in concurrencies]


def parse_cells(text: str) -> list[Cell]:
    """Return the cells that ``put:4KiB:16,get:64MiB:1`` names. Raises ``ValueError``."""
    return [parse_cell(part) for part in text.split(",")]


def parse_cell(text: str) -> Cell:
    try:
        operation, size, concurrency = text.strip().split(":")
        cell = Cell(Operation(operation.lower()), parse_size(size), int(concurrency))
    except ValueError:
        raise ValueError(f"{text!r} is no cell; write for example put:4KiB:16 or get:64MiB:1") from None
    if not (0 < cell.size <= SIZE_BYTES_MAX and 0 < cell.concurrency <= CONCURRENCY_MAX):
        raise ValueError(f"{text!r}: a size is 1 B to 4 GiB, a concurrency 1 to {CONCURRENCY_MAX}")
    return cell


def parse_size(text: str) -> int:
    """Return the bytes that ``4KiB`` means. Raises ``ValueError``."""
    match = re.fullmatch(r"(\d+)([A-Za-z]+)", text)
    if not match or match[2].upper() not in UNITS:
        raise ValueError(f"{text!r} is no size")
    return int(match[1]) * UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """Return ``size`` in the largest unit that divides it."""
    name, unit = next((name, unit) for name, unit in reversed(UNITS.items()) if size % unit == 0)
    return f"{size // unit}{name.replace('IB', 'iB')}"
