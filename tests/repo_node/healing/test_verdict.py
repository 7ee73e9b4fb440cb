"""The job that declares shards lost: only the primary, only after as long a term without a gap."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from repo_node.cluster import verdict as verdict_module
from repo_node.cluster.verdict import VerdictJob
from repo_node.db.walks import Verdict
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.model import NodeId, ShardId


@dataclass
class Term:
    held_without_gap_seconds: float


@dataclass
class Walks:
    """Stands in for the statements of a job without a database; nodes of other tests run beside it."""

    verdict: Verdict
    asked: list[str] = field(default_factory=list)

    async def return_shards(self, database: object) -> Sequence[ShardId]:
        if database is not None:
            return []
        self.asked.append("return")
        return [ShardId(9)]

    async def declare_lost(self, database: object, seconds: float, principal: str) -> Verdict:
        if database is not None:
            return Verdict([], None)
        self.asked.append(f"declare {seconds:g} {principal}")
        return self.verdict


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Walks:
    stand_in = Walks(Verdict([], None))
    monkeypatch.setattr(verdict_module, "walks", stand_in)
    return stand_in


def job_of(held: float) -> tuple[VerdictJob, Metrics]:
    metrics = Metrics()
    job = VerdictJob(None, NodeId("n1"), Term(held), LiveSettings(), metrics.healing)  # type: ignore[arg-type]
    return job, metrics


@pytest.mark.parametrize(
    ("held", "asked"), [(0, []), (1, ["return"]), (299, ["return"]), (300, ["return", "declare 300 node n1"])]
)
async def test_silence_counts_only_while_the_lease_was_held_without_a_gap(
    walks: Walks, held: float, asked: list[str]
) -> None:
    job, _ = job_of(held)
    assert (await job.step()).idle
    assert walks.asked == asked


async def test_verdicts_are_logged_and_counted(walks: Walks, caplog: pytest.LogCaptureFixture) -> None:
    walks.verdict = Verdict([ShardId(1), ShardId(2)], None)
    job, metrics = job_of(1000)
    with caplog.at_level(logging.WARNING):
        assert (await job.step()).done == 2
    assert sum("is lost" in record.message for record in caplog.records) == 2
    assert metrics.registry.get_sample_value("holdfast_shards_lost_total") == 2


async def test_refusal_is_said_once_and_shown_as_long_as_it_lasts(
    walks: Walks, caplog: pytest.LogCaptureFixture
) -> None:
    walks.verdict = Verdict([], "too many")
    job, metrics = job_of(1000)
    for _ in range(3):
        await job.step()
    assert sum("not declared lost" in record.message for record in caplog.records) == 1
    assert metrics.registry.get_sample_value("holdfast_verdict_refused_state") == 1
    walks.verdict = Verdict([], None)
    await job.step()
    assert metrics.registry.get_sample_value("holdfast_verdict_refused_state") == 0
