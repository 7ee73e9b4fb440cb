"""Logins by password: bounded in number, the same work and words for all who fail, locked out after too many."""

from __future__ import annotations

import hashlib
import hmac
import logging
from ipaddress import IPv6Address, IPv6Network, ip_address

from repo_node.auth.passwords import PasswordVerifier, is_outdated
from repo_node.db import login_failures, principals, users
from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database
from repo_node.db.principals import NO_PASSWORD, User
from repo_node.errors import Overloaded, Unauthenticated
from repo_node.keys import derive
from repo_node.settings import LiveSettings
from sharding.background import Background

log = logging.getLogger("holdfast.logins")

WAITING_MAX = 64
"""Password checks under way or in line; more are refused, so that a flood of logins stays bounded."""

IPV6_PREFIX_BITS = 64
"""Who is given IPv6 addresses is given so many that counting each would count nothing: they are counted together."""

WRONG = "Wrong user name, password or token."
LOCKED = "Too many wrong logins by this name or from this address: none is accepted for a while."


DISGUISE_PURPOSE = "login-names-v1"


class Logins:
    """Checks passwords. One that was in line when a lock began is not accepted any more, were it the right one.

    Names that nobody has are counted by what ``key``, the cluster's, makes of them.
    """

    def __init__(self, database: Database, settings: LiveSettings, verifier: PasswordVerifier, key: bytes) -> None:
        self._key = derive(key, DISGUISE_PURPOSE).encode()
        self._database = database
        self._settings = settings
        self._verifier = verifier
        self._waiting = 0
        # One at a time: who is not taken now is when they log in again.
        self._renewals = Background(1)

    async def close(self) -> None:
        await self._renewals.close(0)

    async def check(self, name: str, password: str, address: str, *, renews: bool = True) -> User:
        """Return the user of that name and password. Raises ``Unauthenticated``, ``Overloaded``.

        An old hash is renewed after that, without ``renews`` not: whoever is to change the password would find another.
        """
        if self._waiting >= WAITING_MAX:
            raise Overloaded("Too many logins at once; retry, or use a token.")
        self._waiting += 1
        try:
            user = await self._check(name, password, address)
        finally:
            self._waiting -= 1
        if renews and is_outdated(user.password_hash) and not self._settings.now.read_only_reason:
            self._renewals.start(self._renew(user, password))
        return user

    async def _check(self, name: str, password: str, address: str) -> User:
        now, address = self._settings.now, counted(address)
        counts = bool(now.login_failures_max or now.login_failures_per_address_max)
        if counts:
            await self._require_unlocked(name, address)
        user = await principals.find_user(self._database, name)
        hashed = None if user is None or user.password_hash == NO_PASSWORD else user.password_hash
        fits = await self._verifier.verify(hashed, password)
        if user is None or not fits:
            if counts:
                await login_failures.note_failure(
                    self._database,
                    name,
                    address,
                    disguise=self._disguise(name),
                    lock_seconds=now.login_lock_seconds,
                )
            raise Unauthenticated(WRONG)
        # Others may have failed while this one waited.
        if counts and (await self._require_unlocked(name, address)).has_failed:
            await login_failures.note_success(self._database, name)
        return user

    def _disguise(self, name: str) -> str:
        # No user's name begins so.
        return f"={hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:32]}"

    async def _renew(self, user: User, password: str) -> None:
        """Hash a password that has proved right anew, as it would be hashed now; nobody waits for it."""
        renewed = await self._verifier.hash(password)
        try:
            await users.renew_hash(self._database, user.name, old_hash=user.password_hash, new_hash=renewed)
        except CatalogueError as error:
            # The next login does it.
            log.warning("a password was not hashed anew", extra={"facts": {"cause": str(error)}})

    async def _require_unlocked(self, name: str, address: str) -> login_failures.Standing:
        """Return how a login stands. Raises ``Unauthenticated`` where none is accepted."""
        now = self._settings.now
        standing = await login_failures.standing(
            self._database,
            name,
            address,
            disguise=self._disguise(name),
            user_max=now.login_failures_max,
            address_max=now.login_failures_per_address_max,
            lock_seconds=now.login_lock_seconds,
        )
        if standing.is_locked:
            raise Unauthenticated(LOCKED)
        return standing


def counted(address: str) -> str:
    """Return what the wrong logins from an address are counted by."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found), IPV6_PREFIX_BITS), strict=False))
