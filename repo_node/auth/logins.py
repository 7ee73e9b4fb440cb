"""Logins by password: bounded in number, the same work and words for all who fail, locked out after too many."""

from __future__ import annotations

from repo_node.auth.passwords import PasswordVerifier
from repo_node.db import login_failures, principals
from repo_node.db.pool import Database
from repo_node.db.principals import NO_PASSWORD, User
from repo_node.errors import Overloaded, Unauthenticated
from repo_node.settings import LiveSettings

WAITING_MAX = 64
"""Password checks under way or in line; more are refused, so that a flood of logins stays bounded."""

WRONG = "Wrong user name, password or token."
LOCKED = "Too many wrong logins by this name or from this address: none is accepted for a while."


class Logins:
    """Checks passwords. So many as are in line may still be looked at when a lock begins."""

    def __init__(self, database: Database, settings: LiveSettings, verifier: PasswordVerifier) -> None:
        self._database = database
        self._settings = settings
        self._verifier = verifier
        self._waiting = 0

    async def check(self, name: str, password: str, address: str) -> User:
        """Return the user of that name and password. Raises ``Unauthenticated``, ``Overloaded``."""
        if self._waiting >= WAITING_MAX:
            raise Overloaded("Too many logins at once; retry, or use a token.")
        self._waiting += 1
        try:
            return await self._check(name, password, address)
        finally:
            self._waiting -= 1

    async def _check(self, name: str, password: str, address: str) -> User:
        now = self._settings.now
        limits = (now.login_failures_max, now.login_failures_per_address_max)
        counts = any(limits)
        standing = None
        if counts:
            standing = await login_failures.standing(
                self._database,
                name,
                address,
                user_max=limits[0],
                address_max=limits[1],
                lock_seconds=now.login_lock_seconds,
            )
            if standing.is_locked:
                raise Unauthenticated(LOCKED)
        user = await principals.find_user(self._database, name)
        hashed = None if user is None or user.password_hash == NO_PASSWORD else user.password_hash
        fits = await self._verifier.verify(hashed, password)
        if user is None or not fits:
            if counts:
                await login_failures.note_failure(self._database, name, address, lock_seconds=now.login_lock_seconds)
            raise Unauthenticated(WRONG)
        if standing is not None and standing.has_failed:
            await login_failures.note_success(self._database, name)
        return user
