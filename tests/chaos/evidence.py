"""What is known when all is over: answers, rows, files, reports and logs. ``gathering`` gathers it, ``checker`` judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.answers import Answers
from tests.chaos.audit import EventRow
from tests.chaos.ledger import Ledger, Violation
from tests.chaos.scene import GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class BlobRow:
    """``shards`` and ``zones`` are those of its good copies."""

    sha256: str
    size: int
    redundancy: int
    shards: int
    zones: int
    referenced: bool


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    shard: str
    sha256: str
    generation: str
    size: int
    state: str


@dataclass(frozen=True, slots=True)
class FileFound:
    """A file below ``blobs/`` or ``tmp/``; ``sha256`` is that of its bytes."""

    shard: str
    directory: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Term:
    """Something that a primary node did under ``epoch``: it took office (``primary``), or removed a blob (``gc``)."""

    kind: str
    epoch: int
    at: float
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """What a path had in the end, by GET or by a listing and the file's info; ``status`` of the last answer."""

    status: int
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One check of all shards: what it acted on, by shard and name, and how much it left for later."""

    acted: frozenset[str]
    found: int
    waiting: int


@dataclass
class Evidence:
    """Everything that ``checker`` judges."""

    ledger: Ledger = field(default_factory=Ledger)
    reads: Mapping[str, Read] = field(default_factory=dict)
    viewed: Mapping[str, Read] = field(default_factory=dict)
    """Through the virtual repository."""
    listed: Mapping[str, Read] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)
    """By node."""
    blobs: Sequence[BlobRow] = ()
    replicas: Sequence[ReplicaRow] = ()
    on_lists: frozenset[str] = frozenset()
    files: Sequence[FileFound] = ()
    zones: int = 3
    terms: Sequence[Term] = ()
    epoch: int = 0
    epochs_on_disk: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[EventRow] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, tuple[int | None, int]] = field(default_factory=dict)
    """Of each repository with a quota, the bytes that are counted and those of its artifacts."""
    passes: Sequence[Pass] = ()
    holds: Sequence[str] = ()
    secrets: Sequence[str] = ()
    unrest: Sequence[Violation] = ()
    grace_seconds: float = GRACE_SECONDS
