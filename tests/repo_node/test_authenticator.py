"""The authenticator by itself: what it remembers, what its requests share, who may read while Postgres is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from repo_node.auth import authenticator
from repo_node.auth.permissions import Principal
from repo_node.db.errors import CatalogueUnavailable
from repo_node.errors import Overloaded, Unauthenticated
from repo_node.settings import LiveSettings, Settings
from tests.repo_node.nodes import SOON_SECONDS

KEY = bytes(range(32))


def proved_for(seconds: float) -> authenticator.Proof:
    now = time.monotonic()
    return authenticator.Proof(Principal("admin", is_admin=True), now, now + seconds, now + seconds)


async def test_what_changes_while_it_is_checked_is_not_remembered() -> None:
    checks = 0

    class Slow(authenticator.Authenticator):
        async def _check(self, credentials: authenticator.Credentials) -> authenticator.Proof:
            nonlocal checks
            checks += 1
            await asyncio.sleep(0)
            if checks == 1:
                self.forget()
            return proved_for(60.0)

    slow = Slow(None, lambda: True, LiveSettings(), KEY)  # type: ignore[arg-type]
    try:
        for _ in range(3):
            assert await slow.authenticate({"Authorization": "Bearer x"}) is not None
        assert checks == 2
    finally:
        await slow.close()


async def test_nothing_is_remembered_while_announcements_may_be_lost() -> None:
    checks, hears = 0, [True]

    class Counting(authenticator.Authenticator):
        async def _check(self, credentials: authenticator.Credentials) -> authenticator.Proof:
            nonlocal checks
            checks += 1
            return proved_for(60.0)

    counting = Counting(None, lambda: hears[0], LiveSettings(), KEY)  # type: ignore[arg-type]
    try:
        for hears[0], wanted in ((True, 1), (True, 1), (False, 2), (False, 3), (True, 3)):
            await counting.authenticate({"Authorization": "Bearer x"})
            assert checks == wanted
    finally:
        await counting.close()


class Away(authenticator.Authenticator):
    """Proves everybody for a minute while Postgres answers."""

    answers = True

    async def _check(self, credentials: authenticator.Credentials) -> authenticator.Proof:
        if not self.answers:
            raise CatalogueUnavailable
        return proved_for(60.0)


async def test_while_postgres_is_away_who_was_proved_lately_may_read_and_nothing_else() -> None:
    hears = [True]
    away = Away(None, lambda: hears[0], LiveSettings(), KEY)  # type: ignore[arg-type]
    known, unknown = {"Authorization": "Bearer x"}, {"Authorization": "Bearer y"}
    try:
        proved = await away.authenticate(known)
        hears[0] = away.answers = False
        assert await away.authenticate(known, reading=True) == proved
        for headers, reading in ((known, False), (unknown, True)):
            with pytest.raises(CatalogueUnavailable):
                await away.authenticate(headers, reading=reading)
        away.forget()
        with pytest.raises(CatalogueUnavailable):
            await away.authenticate(known, reading=True)
    finally:
        await away.close()


@pytest.mark.parametrize(("ends_in", "stale_seconds_max"), [(0.0, 300), (60.0, 0)])
async def test_a_token_that_has_ended_or_was_proved_too_long_ago_reads_nothing(
    ends_in: float, stale_seconds_max: float
) -> None:
    away = Away(None, lambda: True, LiveSettings(Settings(stale_seconds_max=stale_seconds_max)), KEY)  # type: ignore[arg-type]
    headers, now = {"Authorization": "Bearer x"}, time.monotonic()
    try:
        await away.authenticate(headers)
        (handle,) = away._remembered
        away._remembered[handle] = replace(away._remembered[handle], holds_until=now, ends_at=now + ends_in)
        away.answers = False
        with pytest.raises(CatalogueUnavailable):
            await away.authenticate(headers, reading=True)
    finally:
        await away.close()


# ---------------------------------------------------------------------- requests that bring the same credentials

BEARER = {"Authorization": "Bearer x"}


class Gated(authenticator.Authenticator):
    """Counts its checks, which end when the test opens the gate: as ``outcomes`` say one after another, then well."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(None, lambda: self.hears, LiveSettings(settings or Settings()), KEY)  # type: ignore[arg-type]
        self.hears = True
        self.gate = asyncio.Event()
        self.checks = 0
        self.outcomes: list[Exception] = []

    async def _check(self, credentials: authenticator.Credentials) -> authenticator.Proof:
        self.checks += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        await self.gate.wait()
        if outcome is not None:
            raise outcome
        return proved_for(60.0)

    def requests(self, count: int, *, reading: bool = False) -> list[asyncio.Task[Principal | None]]:
        return [asyncio.create_task(self.authenticate(BEARER, reading=reading)) for _ in range(count)]

    async def prove_a_while_ago(self) -> None:
        """Prove who it is, so that only a read may still take that from memory; the gate stays open."""
        self.gate.set()
        await self.authenticate(BEARER)
        (handle,) = self._remembered
        self._remembered[handle] = replace(self._remembered[handle], holds_until=time.monotonic())

    async def under_way(self, checks: int) -> None:
        """Return when so many checks have begun."""
        async with asyncio.timeout(SOON_SECONDS):
            while self.checks < checks:
                await asyncio.sleep(0)


@pytest.fixture
async def gated() -> AsyncIterator[Gated]:
    made = Gated()
    yield made
    await made.close()


async def test_requests_share_the_failure_of_the_check_under_way(gated: Gated) -> None:
    gated.outcomes = [CatalogueUnavailable("frozen") for _ in range(20)]
    requests = gated.requests(20)
    await gated.under_way(1)
    gated.gate.set()
    found = await asyncio.gather(*requests, return_exceptions=True)
    assert {str(one) for one in found} == {"frozen"}
    assert gated.checks == 1


async def test_requests_share_what_a_check_proved_once_it_is_remembered(gated: Gated) -> None:
    requests = gated.requests(20)
    await gated.under_way(1)
    gated.gate.set()
    assert {one and one.name for one in await asyncio.gather(*requests)} == {"admin"}
    assert gated.checks == 1


@pytest.mark.parametrize("change", ["forgets", "hears nothing"])
async def test_a_check_that_began_before_a_request_proves_nothing_to_it_after_a_change(
    gated: Gated, change: str
) -> None:
    first = gated.requests(1)
    await gated.under_way(1)
    if change == "forgets":
        gated.forget()
    else:
        gated.hears = False
    later = gated.requests(20)
    gated.gate.set()
    await asyncio.gather(*first, *later)
    assert gated.checks == 2, "one for the first, one for all that came after it"


async def test_a_refusal_of_a_check_that_began_earlier_is_asked_again(gated: Gated) -> None:
    gated.outcomes = [Unauthenticated("wrong")]
    first = gated.requests(1)
    await gated.under_way(1)
    later = gated.requests(5)
    await asyncio.sleep(0)
    gated.gate.set()
    with pytest.raises(Unauthenticated):
        await first[0]
    await asyncio.gather(*later)
    assert gated.checks == 2


async def test_a_check_outlives_the_request_that_began_it(gated: Gated) -> None:
    first, second = gated.requests(2)
    await gated.under_way(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gated.gate.set()
    assert await second is not None
    assert gated.checks == 1


async def test_a_check_nobody_waits_for_any_more_ends_with_the_authenticator(gated: Gated) -> None:
    (request,) = gated.requests(1)
    await gated.under_way(1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await gated.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_was_proved_lately_reads_on_while_a_check_hangs_on_a_node_that_still_seems_well() -> None:
    gated = Gated(Settings(heartbeat_seconds=0.1, node_down_seconds=0.5, stale_after_seconds=0.1))
    try:
        await gated.prove_a_while_ago()
        gated.gate.clear()
        async with asyncio.timeout(SOON_SECONDS):
            found = await asyncio.gather(*gated.requests(5, reading=True))
        assert {one and one.name for one in found} == {"admin"}
        assert gated.checks == 2
    finally:
        await gated.close()


async def test_a_check_that_fails_once_is_no_reason_to_believe_memory(gated: Gated) -> None:
    await gated.prove_a_while_ago()
    gated.outcomes = [CatalogueUnavailable("the connection broke"), Unauthenticated("wrong by now")]
    with pytest.raises(Unauthenticated):
        await gated.authenticate(BEARER, reading=True)
    assert gated.checks == 3


async def test_who_was_proved_lately_reads_on_when_too_many_others_log_in_and_nobody_else_does(gated: Gated) -> None:
    await gated.prove_a_while_ago()
    gated.outcomes = [Overloaded("too many") for _ in range(3)]
    assert await gated.authenticate(BEARER, reading=True) is not None
    with pytest.raises(Overloaded):
        await gated.authenticate(BEARER)
    with pytest.raises(Overloaded):
        await gated.authenticate({"Authorization": "Bearer y"}, reading=True)
