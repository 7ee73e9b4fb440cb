"""Logins by password against rows: who is locked out, by which name and from which addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from repo_node.auth.logins import LOCKED, WRONG, Logins, counted
from repo_node.auth.passwords import PasswordVerifier
from repo_node.db import login_failures
from repo_node.errors import Unauthenticated
from repo_node.settings import LiveSettings, Settings
from tests.repo_node.db.scene import Scene

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
    return Logins(scene.database, settings, cast(PasswordVerifier, verifier))


async def test_s8_a_right_password_that_was_in_line_when_the_lock_began_is_not_accepted(scene: Scene) -> None:
    async def others_fail() -> None:
        for _ in range(2):
            await login_failures.note_failure(scene.database, "admin", ADDRESS, lock_seconds=60)

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
