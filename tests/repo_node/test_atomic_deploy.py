"""What becomes of the copies of several uploads that are committed as one, by the outcomes of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from repo_node import atomic_deploy
from repo_node.atomic_deploy import AtomicDeploy
from repo_node.db.blobs import CommitOutcome, CommitResult
from repo_node.db.errors import OutcomeUnknown
from repo_node.errors import RequestError
from repo_node.settings import Settings
from sharding.model import Replica
from tests.repo_node.db.scene import copies, digests_of

ADOPTED, DEDUPLICATED, TOO_OLD = CommitOutcome.ADOPTED, CommitOutcome.DEDUPLICATED, CommitOutcome.TOO_OLD


def durable(data: bytes) -> Any:
    placement = SimpleNamespace(replicas=copies(1, 3), short=False)
    deployment = SimpleNamespace(digests=digests_of(data), properties={})
    return SimpleNamespace(at=data, deployment=deployment, placement=placement)


async def dropped(
    monkeypatch: pytest.MonkeyPatch, uploads: Sequence[Any], *attempts: Sequence[CommitOutcome]
) -> list[Sequence[Replica]]:
    """Commit, where each attempt but the last gives no answer; return the copies that were dropped."""
    left, store = list(attempts), MagicMock()

    async def commit_together(*_: Any) -> list[CommitResult]:
        outcomes = left.pop(0)
        if left:
            raise OutcomeUnknown("no answer")
        return [CommitResult(outcome, None, ()) for outcome in outcomes]

    monkeypatch.setattr(atomic_deploy, "commit_together", commit_together)
    settings = cast(Any, SimpleNamespace(now=Settings()))
    deploy = AtomicDeploy(MagicMock(), store, MagicMock(), settings, MagicMock(), MagicMock())
    try:
        await deploy.commit(uploads)
    except RequestError as error:
        assert error.status == 408
        assert any(TOO_OLD in outcomes for outcomes in attempts)
    return [call.args[1] for call in store.drop.call_args_list]


@pytest.fixture
def uploads() -> list[Any]:
    return sorted((durable(data) for data in (b"1", b"2")), key=lambda one: one.deployment.digests.sha256)


async def test_copies_that_are_not_needed_are_dropped(monkeypatch: pytest.MonkeyPatch, uploads: list[Any]) -> None:
    assert await dropped(monkeypatch, uploads, [ADOPTED, DEDUPLICATED]) == [uploads[1].placement.replicas]


async def test_one_upload_that_is_refused_leaves_no_copy_of_the_others(
    monkeypatch: pytest.MonkeyPatch, uploads: list[Any]
) -> None:
    assert await dropped(monkeypatch, uploads, [ADOPTED, TOO_OLD]) == [one.placement.replicas for one in uploads]


async def test_an_attempt_that_may_still_arrive_keeps_all_copies(
    monkeypatch: pytest.MonkeyPatch, uploads: list[Any]
) -> None:
    assert await dropped(monkeypatch, uploads, [], [ADOPTED, TOO_OLD]) == []
