from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.client.errors import ClientError, Refused, Unreachable
from repo_node.client.retry import RETRY_AFTER_SECONDS_MAX, RetryPolicy, persist, read_retry_after

QUICK = RetryPolicy(repeats_max=3, wait_seconds_first=0.001, wait_seconds_max=0.002)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_their_bound(repeat: int, chance: float) -> None:
    policy = RetryPolicy()
    wait = policy.wait_seconds(repeat, None, chance)
    assert policy.wait_seconds_first / 2 <= wait <= policy.wait_seconds_max
    assert wait <= policy.wait_seconds(repeat + 1, None, chance)


@given(st.integers(1, 20), st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))
def test_waits_are_as_long_as_the_server_asks_within_reason(repeat: int, asked: float, chance: float) -> None:
    wait = RetryPolicy().wait_seconds(repeat, asked, chance)
    assert min(asked, RETRY_AFTER_SECONDS_MAX) <= wait <= RETRY_AFTER_SECONDS_MAX


class Failing:
    """Fails with one error after another, then returns the number of the attempt."""

    def __init__(self, *errors: ClientError) -> None:
        self.errors = list(errors)

    async def __call__(self, attempt: int) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return attempt


async def test_persist_repeats_until_it_succeeds() -> None:
    heard: list[str] = []
    failing = Failing(Unreachable("cut"), Refused(503, "busy"), Refused(429, "slow down"))
    assert await persist(failing, QUICK, on_wait=lambda error, seconds: heard.append(str(error))) == 4
    assert heard == ["cut", "busy (status 503)", "slow down (status 429)"]


async def test_persist_gives_up_after_its_repeats() -> None:
    failing = Failing(*[Unreachable(f"cut {number}") for number in range(9)])
    with pytest.raises(Unreachable, match="cut 3"):
        await persist(failing, QUICK)


@pytest.mark.parametrize("error", [Refused(404, "gone"), Unreachable("no TLS", retryable=False)])
async def test_persist_does_not_repeat_what_is_final(error: ClientError) -> None:
    failing = Failing(error, error)
    with pytest.raises(ClientError):
        await persist(failing, QUICK)
    assert len(failing.errors) == 1


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (Unreachable("cut"), False),
        (Refused(500, "broke"), False),
        (Refused(503, "busy"), True),
        (Refused(429, "slow down"), True),
        (Unreachable("refused", may_be_done=False), True),
    ],
)
async def test_persist_repeats_what_has_an_effect_only_when_it_was_not_done(error: ClientError, repeated: bool) -> None:
    failing = Failing(error)
    if repeated:
        assert await persist(failing, QUICK, idempotent=False) == 2
    else:
        with pytest.raises(ClientError):
            await persist(failing, QUICK, idempotent=False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("0", 0.0),
        ("Thu, 02 Jan 2020 03:04:15 GMT", 10.0),
        ("Thu, 02 Jan 2020 03:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        ("\u00b2", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)) == seconds
