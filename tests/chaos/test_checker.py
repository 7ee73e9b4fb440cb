"""The checker finds each violation that is planted, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.checker import check
from tests.chaos.evidence import BlobRow, Evidence, FileFound, Pass, Read, ReplicaRow, Term
from tests.chaos.ledger import Ledger, Outcome, Violation

KEPT, OVERWRITTEN, DELETED, DOUBTFUL = (digit * 64 for digit in "abcd")
SHARDS = ("/one", "/two")
SIZE = 100
CLEAN = Pass(frozenset(), 0, 0)


def clean() -> Evidence:
    """A cluster of three paths: one kept, one deleted, one in doubt; with two copies each of what is there."""
    ledger = Ledger()
    for path, versions in {"kept": [OVERWRITTEN, KEPT], "deleted": [DELETED, None]}.items():
        for number, version in enumerate(versions):
            operation = ledger.begin(path, "put" if version else "delete", version, 10 * number)
            operation.note(Outcome.ACKNOWLEDGED)
            operation.end(Outcome.ACKNOWLEDGED, 10 * number + 1)
    operation = ledger.begin("doubtful", "put", DOUBTFUL, 0)
    operation.note(Outcome.UNKNOWN)
    operation.end(Outcome.UNKNOWN, 1)
    there = {"kept": KEPT, "doubtful": DOUBTFUL}
    rows = [
        ReplicaRow(shard, sha256, f"{shard}-{sha256[0]}", SIZE, "live") for shard in SHARDS for sha256 in there.values()
    ]
    return Evidence(
        ledger=ledger,
        reads={"deleted": Read(404), **{path: Read(200, sha256) for path, sha256 in there.items()}},
        listed={path: Read(200, sha256, SIZE) for path, sha256 in there.items()},
        blobs=[BlobRow(sha256, SIZE, 2, 2, 2, True) for sha256 in there.values()],
        replicas=rows,
        files=[FileFound(row.shard, "blobs", f"{row.sha256}.{row.generation}", SIZE, row.sha256) for row in rows],
        terms=[Term("primary", 1, 0), Term("gc", 1, 30, DELETED), Term("primary", 2, 40)],
        epoch=2,
        epochs_on_disk=dict.fromkeys(SHARDS, 2),
        audit={("kept", "deploy"): 2, ("deleted", "deploy"): 1, ("deleted", "delete"): 1, ("doubtful", "deploy"): 1},
        totals={"count": 2, "bytes": 200},
        sums={"count": 2, "bytes": 200},
        passes=[Pass(frozenset({"1 stray x"}), 1, 0), CLEAN, CLEAN],
        grace_seconds=2,
    )


def test_clean_cluster_has_no_violation() -> None:
    assert check(clean()) == []


def set_reads(**reads: Read) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.reads = {**evidence.reads, **reads}
        evidence.listed = {
            path: Read(200, read.version, SIZE) for path, read in evidence.reads.items() if read.status == 200
        }

    return plant


def change(**changes: object) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        for name, value in changes.items():
            setattr(evidence, name, value)

    return plant


def lose_file(evidence: Evidence) -> None:
    evidence.files = evidence.files[1:]


def add_file(directory: str, name: str) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.files = [*evidence.files, FileFound("/one", directory, name, SIZE, DELETED)]

    return plant


def spoil_file(evidence: Evidence) -> None:
    evidence.files = [replace(evidence.files[0], sha256=DELETED), *evidence.files[1:]]


def grow_file(evidence: Evidence) -> None:
    evidence.files = [replace(evidence.files[0], size=SIZE + 1), *evidence.files[1:]]


def change_blob(**changes: int) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.blobs = [replace(evidence.blobs[0], **changes), *evidence.blobs[1:]]

    return plant


def collect(sha256: str, at: float) -> Callable[[Evidence], None]:
    return change(terms=[Term("primary", 1, 0), Term("gc", 1, at, sha256), Term("primary", 2, 40)])


def count_events(path: str, kind: str, count: int) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        evidence.audit = {**evidence.audit, (path, kind): count}

    return plant


@pytest.mark.parametrize(
    ("invariant", "plant"),
    [
        ("I1", set_reads(kept=Read(404))),
        ("I1", set_reads(kept=Read(503))),
        ("I1", set_reads(kept=Read(0))),
        ("I3", set_reads(kept=Read(200, OVERWRITTEN))),
        ("I3", set_reads(doubtful=Read(200, KEPT))),
        ("I4", set_reads(deleted=Read(200, DELETED))),
        ("I5", change_blob(shards=1)),
        ("I5", change_blob(zones=1)),
        ("I5", spoil_file),
        ("I5", change(unrest=[Violation("I5", "it does not come to rest")])),
        ("I6", collect(KEPT, 15)),
        ("I6", collect(KEPT, 500)),
        ("I6", collect(DELETED, 5)),
        ("I6", collect(DELETED, 11)),
        ("I6", collect(OVERWRITTEN, 11)),
        ("I7", lose_file),
        ("I7", add_file("blobs", f"{DELETED}.somebody")),
        ("I7", add_file("tmp", "somebody")),
        ("I8", change(terms=[Term("primary", 1, 0), Term("primary", 2, 1), Term("gc", 1, 2, "f" * 64)])),
        ("I8", change(terms=[Term("primary", 1, 0), Term("primary", 1, 1)])),
        ("I8", change(epochs_on_disk={"/one": 3})),
        ("I8", change(holds=["lost_history: a shard knows more"])),
        ("I9", change(totals={"count": 3, "bytes": 200})),
        ("I9", grow_file),
        ("I9", change(listed={"kept": Read(200, KEPT, SIZE), "doubtful": Read(200, DOUBTFUL, 1)})),
        ("I10", change(listed={"kept": Read(200, KEPT, SIZE)})),
        ("I10", change(listed={"kept": Read(200, DOUBTFUL, SIZE), "doubtful": Read(200, DOUBTFUL, SIZE)})),
        ("I11", count_events("kept", "deploy", 3)),
        ("I11", count_events("kept", "deploy", 1)),
        ("I11", count_events("doubtful", "deploy", 2)),
        ("I11", count_events("deleted", "delete", 2)),
        ("I12", change(secrets=["node-1 has the cluster key in its log"])),
        ("I13", change(passes=[Pass(frozenset({"a"}), 1, 0), Pass(frozenset({"a"}), 1, 0), CLEAN, CLEAN])),
        ("I13", change(passes=[CLEAN, Pass(frozenset(), 0, 1)])),
        ("I13", change(passes=[])),
    ],
)
def test_planted_violation_is_found(invariant: str, plant: Callable[[Evidence], None]) -> None:
    evidence = clean()
    plant(evidence)
    assert {violation.invariant for violation in check(evidence)} == {invariant}


@pytest.mark.parametrize("count", [0, 1])
def test_write_in_doubt_may_have_been_done_or_not(count: int) -> None:
    evidence = clean()
    count_events("doubtful", "deploy", count)(evidence)
    assert check(evidence) == []
