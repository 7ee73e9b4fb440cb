"""Logins by password against rows: who is locked out, by which name and from which addresses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import asyncpg
import pytest
from argon2 import PasswordHasher

from repo_node.auth import passwords
from repo_node.auth.logins import LOCKED, WAITING_MAX, WRONG, Logins, counted
from repo_node.auth.passwords import VERIFIERS_MAX, PasswordVerifier
from repo_node.db import login_failures, users
from repo_node.errors import Overloaded, Unauthenticated
from repo_node.origin import Origin
from repo_node.settings import LiveSettings, Settings
from tests.repo_node.db.scene import Scene, table
from tests.repo_node.nodes import CLUSTER_KEY

ADDRESS = "192.0.2.1"


class Verifier:
    """Takes one password for the right one, and awaits ``meanwhile`` before it says so."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        self._meanwhile = meanwhile

    async def verify(self, hashed: str | None, password: str) -> bool:
        if self._meanwhile is not None:
            await self._meanwhile()
        return password == "right"


def logins_of(scene: Scene, verifier: Verifier) -> Logins:
    settings = LiveSettings(Settings(login_failures_max=2, login_failures_per_address_max=4))
    return Logins(scene.database, settings, cast(PasswordVerifier, verifier), CLUSTER_KEY)


async def test_s8_a_right_password_that_was_in_line_when_the_lock_began_is_not_accepted(scene: Scene) -> None:
    async def others_fail() -> None:
        for _ in range(2):
            await login_failures.note_failure(scene.database, "admin", ADDRESS, disguise="=x", lock_seconds=60)

    with pytest.raises(Unauthenticated, match=LOCKED):
        await logins_of(scene, Verifier(others_fail)).check("admin", "right", ADDRESS)


async def test_s8_wrong_logins_from_one_ipv6_network_are_counted_together(scene: Scene) -> None:
    logins = logins_of(scene, Verifier())
    for number in range(4):
        with pytest.raises(Unauthenticated, match=WRONG):
            await logins.check(f"somebody-{number}", "wrong", f"2001:db8::{number}")
    with pytest.raises(Unauthenticated, match=LOCKED):
        await logins.check("admin", "right", "2001:db8::ffff")
    assert (await logins.check("admin", "right", "2001:db8:0:1::1")).name == "admin"


async def test_s8_a_name_that_nobody_has_is_counted_and_kept_nowhere(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    logins, other_node = logins_of(scene, Verifier()), logins_of(scene, Verifier())
    for typed in ("hunter2-at-the-wrong-place", "a" * 500, "a" * 500, "hunter2-at-the-wrong-place"):
        with pytest.raises(Unauthenticated, match=WRONG):
            await logins.check(typed, "wrong", ADDRESS)
    rows = await table(connection, "SELECT name, failures FROM login_failures WHERE kind = 'user'")
    assert [failures for _, failures in rows] == [2, 2]
    assert all(name.startswith("=") and len(name) < 64 for name, _ in rows)
    with pytest.raises(Unauthenticated, match=LOCKED):
        await other_node.check("hunter2-at-the-wrong-place", "wrong", "192.0.2.2")


async def test_s8_a_new_user_is_not_locked_out_by_who_tried_the_name_before(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    logins = logins_of(scene, Verifier())
    for _ in range(2):
        with pytest.raises(Unauthenticated, match=WRONG):
            await logins.check("late", "wrong", ADDRESS)
    await connection.execute("INSERT INTO users (name, password_hash) VALUES ('late', 'x')")
    assert (await logins.check("late", "right", ADDRESS)).name == "late"
    with pytest.raises(Unauthenticated, match=WRONG):
        await logins.check("late", "wrong", ADDRESS)
    found = "SELECT name, failures FROM login_failures WHERE kind = 'user' AND name = 'late'"
    assert await table(connection, found) == [("late", 1)]


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_s8_an_address_is_counted_by_what_its_owner_was_given(address: str, wanted: str) -> None:
    assert counted(address) == wanted


# ---------------------------------------------------------------- what passwords cost

OLD_HASH = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("right")
SET_HASH = "UPDATE users SET password_hash = $1 WHERE name = 'admin'"


@pytest.fixture
async def verifier() -> AsyncIterator[PasswordVerifier]:
    value = PasswordVerifier()
    yield value
    value.close()


async def hash_of(connection: asyncpg.Connection) -> str:
    return str(await connection.fetchval("SELECT password_hash FROM users WHERE name = 'admin'"))


async def ended(logins: Logins) -> None:
    """Wait for the hashing that no login waits for."""
    async with asyncio.timeout(10):
        await logins._renewals.close(10)


async def test_s30_a_hash_with_old_parameters_is_renewed_once_at_a_right_login(
    scene: Scene, connection: asyncpg.Connection, verifier: PasswordVerifier
) -> None:
    await connection.execute(SET_HASH, OLD_HASH)
    logins = Logins(scene.database, LiveSettings(), verifier, CLUSTER_KEY)
    with pytest.raises(Unauthenticated):
        await logins.check("admin", "wrong", ADDRESS)
    assert await hash_of(connection) == OLD_HASH
    await asyncio.gather(*(logins.check("admin", "right", ADDRESS) for _ in range(5)))
    await ended(logins)
    renewed = await hash_of(connection)
    assert renewed != OLD_HASH and passwords.check_password(renewed, "right") and not passwords.is_outdated(renewed)
    logins = Logins(scene.database, LiveSettings(), verifier, CLUSTER_KEY)
    await logins.check("admin", "right", ADDRESS)
    await ended(logins)
    assert await hash_of(connection) == renewed
    told = "SELECT principal, detail->>'name' FROM events WHERE kind = 'password_rehash'"
    assert await table(connection, told) == [("holdfast", "admin")]


async def test_s30_no_login_waits_for_a_hash_to_be_renewed(
    scene: Scene, connection: asyncpg.Connection, verifier: PasswordVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connection.execute(SET_HASH, OLD_HASH)
    gate = asyncio.Event()

    async def slow(password: str) -> str:
        await gate.wait()
        return passwords.hash_password(password)

    monkeypatch.setattr(verifier, "hash", slow)
    logins = Logins(scene.database, LiveSettings(), verifier, CLUSTER_KEY)
    await logins.check("admin", "right", ADDRESS)
    # Meanwhile it is changed: the hash of the old password comes too late.
    changed = passwords.hash_password("another")
    assert await users.set_password(
        scene.database, "admin", old_hash=OLD_HASH, new_hash=changed, by=Origin("admin", "r")
    )
    gate.set()
    await ended(logins)
    assert await hash_of(connection) == changed


async def test_s30_a_hash_is_not_renewed_under_the_hands_of_whoever_changes_the_password(
    scene: Scene, connection: asyncpg.Connection, verifier: PasswordVerifier
) -> None:
    await connection.execute(SET_HASH, OLD_HASH)
    logins = Logins(scene.database, LiveSettings(), verifier, CLUSTER_KEY)
    found = await logins.check("admin", "right", ADDRESS, renews=False)
    await ended(logins)
    assert await hash_of(connection) == found.password_hash == OLD_HASH


async def test_s30_nothing_is_renewed_while_the_cluster_is_read_only(
    scene: Scene, connection: asyncpg.Connection, verifier: PasswordVerifier
) -> None:
    await connection.execute(SET_HASH, OLD_HASH)
    logins = Logins(scene.database, LiveSettings(Settings(read_only_reason="a test")), verifier, CLUSTER_KEY)
    await logins.check("admin", "right", ADDRESS)
    await ended(logins)
    assert await hash_of(connection) == OLD_HASH


async def test_s30_500_logins_at_once_keep_few_threads_busy_and_the_event_loop_free(
    scene: Scene, verifier: PasswordVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, threads, lock = 0, 0, set[str](), threading.Lock()

    def check(hashed: str, password: str) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            threads.add(threading.current_thread().name)
        time.sleep(0.01)
        with lock:
            running -= 1
        return True

    async def tick() -> int:
        ticks = 0
        while not work.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    monkeypatch.setattr(passwords, "check_password", check)
    logins = Logins(scene.database, LiveSettings(Settings(login_failures_max=0)), verifier, CLUSTER_KEY)
    attempts = (logins.check("admin", "right", ADDRESS) for _ in range(500))
    work = asyncio.ensure_future(asyncio.gather(*attempts, return_exceptions=True))
    ticks = await tick()
    found = await work
    assert sum(isinstance(one, Overloaded) for one in found) == 500 - WAITING_MAX
    assert most <= VERIFIERS_MAX and all(name.startswith("argon2") for name in threads)
    # Of the third of a second that the threads slept, none was slept by the loop.
    assert ticks > 500
