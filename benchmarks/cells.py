"""What is measured: one cell is an operation, a size, a number of clients, and the way they go about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

UNITS = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
KIB, MIB = 1 << 10, 1 << 20
SMALL_BYTES_MAX = 256 * KIB
"""Up to this size a cell is judged by its operations, above by its bytes."""

JUDGED_CONCURRENCY = 16
SIZE_BYTES_MAX = 4 << 30
CONCURRENCY_MAX = 1024
STOCK_BYTES_MAX = 1 << 30


class Operation(StrEnum):
    """What a client does in a cell."""

    PUT = "put"
    PUT_SHA256 = "put-sha256"
    """To a repository that wants the sha256 alone."""
    GET = "get"
    HEAD = "head"
    NOT_MODIFIED = "304"
    """A GET that names the ETag."""
    CHECKSUM = "checksum"
    """A deploy of known content by its sha256, without a body."""
    DELETE = "delete"

    @property
    def words(self) -> str:
        return OPERATION_WORDS.get(self, self.upper())


OPERATION_WORDS = {
    Operation.PUT_SHA256: "PUT, sha256 only,",
    Operation.NOT_MODIFIED: "304 of",
    Operation.CHECKSUM: "checksum deploy",
}
BODILESS = frozenset({Operation.HEAD, Operation.NOT_MODIFIED, Operation.CHECKSUM, Operation.DELETE})


class Way(StrEnum):
    """Which nodes are asked for which objects, and when."""

    SPREAD = "spread"
    """Any node, every stored object, each client as soon as it has its answer."""
    HOT = "hot"
    """The same few objects again and again."""
    OWN = "own"
    """Objects that the node asked has on a disk of its own."""
    PEER = "peer"
    """Objects that the node asked has to fetch from a peer."""
    ONE = "one"
    """All clients at one node, for its memory."""
    OPEN = "open"
    """At times drawn beforehand, at half of the peak rate, whether the answer before has come or not."""


WAY_WORDS = {
    Way.SPREAD: "",
    Way.HOT: ", hot set",
    Way.OWN: ", own shard",
    Way.PEER: ", through a peer",
    Way.ONE: " at one node",
    Way.OPEN: ", open loop",
}


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One operation on objects of ``size`` bytes by ``concurrency`` clients, each with a connection."""

    operation: Operation
    size: int
    concurrency: int
    way: Way = Way.SPREAD

    def __str__(self) -> str:
        way = "" if self.way is Way.SPREAD else f":{self.way}"
        return f"{self.operation}:{format_size(self.size)}:{self.concurrency}{way}"

    @property
    def title(self) -> str:
        """What a person calls it; the concurrency is named where it is not the usual one."""
        unusual = self.concurrency != JUDGED_CONCURRENCY and self.way is not Way.OPEN
        clients = f", {self.concurrency} clients" if unusual else ""
        size = re.sub(r"(\d)([A-Z])", r"\1 \2", format_size(self.size))
        return f"{self.operation.words} {size}{clients}{WAY_WORDS[self.way]}"

    @property
    def is_upload(self) -> bool:
        return self.operation in (Operation.PUT, Operation.PUT_SHA256)

    @property
    def has_body(self) -> bool:
        """Whether the object's bytes are sent, either way."""
        return self.operation not in BODILESS

    @property
    def is_small(self) -> bool:
        """Whether its cost is told for 1,000 operations, and not for 1 GB."""
        return self.size <= SMALL_BYTES_MAX

    @property
    def aims(self) -> tuple[Aim, ...]:
        """What this cell has to reach, where it is judged at all."""
        return AIMS.get(self, ())


@dataclass(frozen=True, slots=True)
class Aim:
    """The most, or the least, that ``metric``, a property of ``report.Figures``, may be.

    ``floors`` says that the bound is so many times the floor of the same run.
    """

    metric: str
    bound: float
    unit: str
    at_least: bool = False
    floors: bool = False

    def is_reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def limit(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"

    def __str__(self) -> str:
        return f"{self.limit} {self.unit}"


def per_1000(bound: float) -> Aim:
    return Aim("cpu_seconds_per_1000", bound, "CPU-s per 1,000")


def per_gb(bound: float) -> Aim:
    return Aim("cpu_seconds_per_gb", bound, "CPU-s per GB")


def memory(size: int, operation: Operation) -> Cell:
    return Cell(operation, size, 64, Way.ONE)


PUT, PUT_SHA256, GET, HEAD, NOT_MODIFIED, CHECKSUM, DELETE = Operation
RSS = Aim("peak_rss_mib", 150, "MiB a process")
JUDGED_UPLOADS: dict[Cell, tuple[Aim, ...]] = {
    Cell(PUT, 4 * KIB, 16): (per_1000(1.5), per_1000(2.0), Aim("per_second", 800, "operations/s", at_least=True)),
    Cell(PUT, 64 * KIB, 16): (per_1000(2.0),),
    Cell(PUT, 64 * MIB, 16): (Aim("times_floor", 1.5, "x floor", floors=True),),
    Cell(PUT_SHA256, 64 * MIB, 16): (per_gb(3.0),),
    Cell(PUT, 4 * KIB, 64): (),
}
JUDGED_READS: dict[Cell, tuple[Aim, ...]] = {
    Cell(GET, 4 * KIB, 16): (per_1000(0.5),),
    Cell(GET, 4 * KIB, 16, Way.HOT): (),
    Cell(GET, 64 * KIB, 16): (per_1000(0.6),),
    Cell(GET, 64 * KIB, 16, Way.HOT): (),
    Cell(GET, 1 * MIB, 16): (),
    Cell(GET, 64 * MIB, 16, Way.OWN): (per_gb(0.6),),
    Cell(GET, 64 * MIB, 16, Way.PEER): (per_gb(1.0),),
    Cell(HEAD, 4 * KIB, 16): (per_1000(0.35),),
    Cell(NOT_MODIFIED, 4 * KIB, 16): (per_1000(0.35),),
    Cell(CHECKSUM, 4 * KIB, 16): (per_1000(1.0),),
    Cell(GET, 4 * KIB, 64): (),
    Cell(GET, 4 * KIB, 64, Way.OPEN): (Aim("p99_ms", 25, "ms p99"),),
}
JUDGED_MEMORY: dict[Cell, tuple[Aim, ...]] = {
    memory(size, operation): (RSS,) for operation in (GET, PUT) for size in (MIB, 64 * MIB)
}
AIMS = JUDGED_UPLOADS | JUDGED_READS | JUDGED_MEMORY
"""The table of a full run, in the order in which it is measured, with what is aimed at."""


def phases(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell], list[Cell]]:
    """Return the uploads, which want a fresh cluster, the downloads, which want a stock, and those for memory."""
    uploads = [cell for cell in cells if cell.is_upload and cell.way is not Way.ONE]
    downloads = [cell for cell in cells if not cell.is_upload and cell.way is not Way.ONE]
    return uploads, downloads, [cell for cell in cells if cell.way is Way.ONE]


def stock_objects(size: int, artifacts: int) -> int:
    """Return how many objects of ``size`` bytes the downloads are spread over: ``artifacts`` small ones, or 1 GiB."""
    return max(1, artifacts if size <= SMALL_BYTES_MAX else min(artifacts, STOCK_BYTES_MAX // size))


def closed(cell: Cell) -> Cell:
    """Return the cell whose rate is the peak for ``cell``'s open loop."""
    return replace(cell, way=Way.SPREAD)


def parse_cells(text: str) -> list[Cell]:
    """Return the cells that ``put:4KiB:16,get:64MiB:16:own`` names. Raises ``ValueError``."""
    return [parse_cell(part) for part in text.split(",")]


def parse_cell(text: str) -> Cell:
    try:
        operation, size, concurrency, *way = text.strip().split(":")
        cell = Cell(Operation(operation.lower()), parse_size(size), int(concurrency), Way(*way) if way else Way.SPREAD)
    except (ValueError, TypeError):
        raise ValueError(f"{text!r} is no cell; write for example put:4KiB:16 or get:64MiB:16:own") from None
    if not (0 < cell.size <= SIZE_BYTES_MAX and 0 < cell.concurrency <= CONCURRENCY_MAX):
        raise ValueError(f"{text!r}: a size is 1 B to 4 GiB, a concurrency 1 to {CONCURRENCY_MAX}")
    if cell.operation is DELETE:
        raise ValueError(f"{text!r}: deletions are measured by bench_scale")
    if cell.is_upload and cell.way not in (Way.SPREAD, Way.ONE):
        raise ValueError(f"{text!r}: uploads go to any node, or to one")
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
