"""From the Authorization header to a principal.

What was proved is remembered for a short time, under a keyed hash, and believed only while announcements
from Postgres arrive: a changed password or a revoked token is then forgotten at once. While Postgres is away,
what was proved lately goes on for reading, and for nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from repo_node.auth import tokens
from repo_node.auth.logins import WRONG, Logins
from repo_node.auth.passwords import PasswordVerifier
from repo_node.auth.path_patterns import PathPatterns
from repo_node.auth.permissions import ANONYMOUS, Permission, Principal
from repo_node.auth.rights import Grant, Rights, compile_rights
from repo_node.auth.scopes import Scope, UnknownScope, read_scope_words
from repo_node.db import principals
from repo_node.db import rights as right_rows
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database
from repo_node.errors import Overloaded, Unauthenticated
from repo_node.settings import LiveSettings
from sharding.tasks import stop

REMEMBERED_MAX = 10_000
TOKEN_SECONDS = 60.0
MUST_CHANGE = "The password must be changed first: POST /artifactory/api/security/users/authorization/changePassword."


@dataclass(frozen=True, slots=True)
class Credentials:
    """Either a token, or a user with a password. ``address`` is where they came from: no part of what they prove."""

    secret: str
    user: str | None = None
    address: str = field(default="", compare=False)


NO_CREDENTIALS = Credentials("", f"\0{ANONYMOUS}")
"""Of whoever brings none; nobody can bring these, since no user name has a NUL."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Who was proved, when, until when that holds, and when the credentials themselves end; by this process' clock."""

    principal: Principal
    proved_at: float
    holds_until: float
    ends_at: float


class Authenticator:
    """Checks credentials. ``fresh`` says whether announcements arrive; ``key`` is the cluster's."""

    def __init__(self, database: Database, fresh: Callable[[], bool], settings: LiveSettings, key: bytes) -> None:
        self._database = database
        self._fresh = fresh
        self._settings = settings
        self._verifier = PasswordVerifier()
        self._logins = Logins(database, settings, self._verifier, key)
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, Proof] = OrderedDict()
        self._forgotten = 0
        self._checks: dict[bytes, asyncio.Task[Principal]] = {}

    async def authenticate(
        self, headers: Mapping[str, str], *, reading: bool = False, address: str = ""
    ) -> Principal | None:
        """Return who sent ``headers``; None when they carry no credentials and access without any is off.

        ``address`` is where they came from: wrong logins are counted by it. ``reading``: who was proved lately may go
        on while Postgres is away. Raises ``Unauthenticated``, ``Overloaded``, ``CatalogueUnavailable``.
        """
        credentials = parse(headers)
        if credentials is None:
            if not self._settings.now.anonymous_access:
                return None
            credentials = NO_CREDENTIALS
        elif credentials.user is not None:
            credentials = replace(credentials, address=address)
        handle = self._handle(credentials)
        if (known := self._recall(handle)) is not None:
            return known
        if not reading or self._recall_lately(handle) is None:
            return await self._prove(handle, credentials)
        return await self._prove_or_recall(handle, credentials)

    async def _prove_or_recall(self, handle: bytes, credentials: Credentials) -> Principal:
        """Check credentials as ``_prove``, or take what was proved lately where Postgres does not answer in time.

        A Postgres that is frozen keeps logins waiting until there are too many: that is no other case.
        """
        try:
            return await self._prove_in_time(handle, credentials)
        except (CatalogueUnavailable, Overloaded, TimeoutError) as error:
            # Looked up again: it may have been revoked meanwhile.
            if (known := self._recall_lately(handle)) is not None:
                return known
            if isinstance(error, Overloaded):
                raise
            raise CatalogueUnavailable(str(error) or "Postgres did not answer in time") from error

    async def _prove_in_time(self, handle: bytes, credentials: Credentials) -> Principal:
        """Check credentials as ``_prove``, for ``stale_after_seconds`` in the end, like a look-up of an artifact.

        One failure while heartbeats come back says little: a single connection may have broken.
        """
        if self._fresh():
            with suppress(CatalogueUnavailable, TimeoutError):
                async with asyncio.timeout(self._settings.now.node_down_seconds):
                    return await self._prove(handle, credentials)
        async with asyncio.timeout(self._settings.now.stale_after_seconds):
            return await self._prove(handle, credentials)

    async def _prove(self, handle: bytes, credentials: Credentials) -> Principal:
        """Check credentials: once for all the requests that bring the same ones at the same time.

        Whoever finds a check under way shares its failure: while Postgres is frozen, each waits for one deadline.
        What it found out is believed by those who came later only when it may be remembered, as a change that
        Postgres acknowledged before they came may not be in it.
        """
        if (check := self._checks.get(handle)) is not None:
            with suppress(Unauthenticated):
                await asyncio.shield(check)
            if (known := self._recall(handle)) is not None:
                return known
        # One that is under way by now began after this request came.
        if (check := self._checks.get(handle)) is None:
            check = self._checks[handle] = asyncio.create_task(self._check_and_remember(handle, credentials))
            check.add_done_callback(lambda ended: self._end_check(handle, ended))
        return await asyncio.shield(check)

    async def _check_and_remember(self, handle: bytes, credentials: Credentials) -> Principal:
        forgotten = self._forgotten
        try:
            proof = await self._check(credentials)
        except Unauthenticated:
            self._remembered.pop(handle, None)
            raise
        # What changed while it was being checked may have made it wrong.
        if forgotten == self._forgotten:
            self._remember(handle, proof)
        return proof.principal

    def _end_check(self, handle: bytes, ended: asyncio.Task[Principal]) -> None:
        del self._checks[handle]
        if not ended.cancelled():
            ended.exception()  # known to whoever still waits; perhaps nobody does

    def _recall(self, handle: bytes) -> Principal | None:
        known = self._remembered.get(handle) if self._fresh() else None
        return known.principal if known is not None and known.holds_until > time.monotonic() else None

    def _recall_lately(self, handle: bytes) -> Principal | None:
        known, now = self._remembered.get(handle), time.monotonic()
        if known is None or now >= min(known.proved_at + self._settings.now.stale_seconds_max, known.ends_at):
            return None
        return known.principal

    def _remember(self, handle: bytes, proof: Proof) -> None:
        if self._fresh() and proof.holds_until > proof.proved_at:
            self._remembered[handle] = proof
            self._remembered.move_to_end(handle)
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)

    def forget(self) -> None:
        """Forget everything proved so far: users, groups or permissions have changed."""
        self._forgotten += 1
        self._remembered.clear()

    def forget_tokens(self) -> None:
        """Forget who was proved by tokens: some have changed. Passwords, which cost much to check, have not."""
        self._forgotten += 1
        for handle in [handle for handle, proof in self._remembered.items() if proof.principal.token is not None]:
            del self._remembered[handle]

    def _handle(self, credentials: Credentials) -> bytes:
        # No user name has a NUL, so that a bearer's secret is never taken for a user's password.
        user = "\0" if credentials.user is None else credentials.user
        text = f"{user}\0{credentials.secret}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=32, key=self._key).digest()

    async def _check(self, credentials: Credentials) -> Proof:
        if credentials is NO_CREDENTIALS:
            return await self._check_nobody()
        if (secret := tokens.secret_in(credentials.secret)) is not None:
            return await self._check_token(secret)
        if credentials.user is None:
            raise Unauthenticated(WRONG)
        return await self._check_password(credentials)

    async def _check_token(self, secret: str) -> Proof:
        asked_at = time.monotonic()
        token = await principals.find_token(self._database, tokens.digest(secret))
        if token is None:
            raise Unauthenticated(WRONG)
        left_seconds = math.inf if token.expires_in_seconds is None else token.expires_in_seconds
        try:
            scope = read_scope_words(token.scopes)
        except UnknownScope:  # a newer release's word: what it means is not known
            raise Unauthenticated(WRONG) from None
        is_admin = token.is_admin and scope.groups is None
        rights = {} if is_admin else await self._rights_in(scope, token)
        ends_at, is_whole = asked_at + left_seconds, scope.groups is None
        principal = Principal(token.user, is_admin, scope.permissions, rights, is_whole, token.id, ends_at)
        return Proof(principal, asked_at, min(ends_at, asked_at + TOKEN_SECONDS), ends_at)

    async def _check_password(self, credentials: Credentials) -> Proof:
        asked_at = time.monotonic()
        user = await self._logins.check(credentials.user or "", credentials.secret, credentials.address)
        if user.must_change_password:
            raise Unauthenticated(MUST_CHANGE)
        holds_until = asked_at + self._settings.now.password_cache_seconds
        rights = {} if user.is_admin else await self._rights_of(user.id)
        return Proof(Principal(user.name, user.is_admin, rights=rights), asked_at, holds_until, math.inf)

    async def _check_nobody(self) -> Proof:
        """Prove who brings no credentials: the user ``anonymous``, who is never an administrator."""
        asked_at = time.monotonic()
        user = await principals.find_user(self._database, ANONYMOUS)
        if user is None:
            raise Unauthenticated("Authentication is required.")
        principal = Principal(ANONYMOUS, is_admin=False, rights=await self._rights_of(user.id))
        return Proof(principal, asked_at, asked_at + TOKEN_SECONDS, math.inf)

    async def _rights_of(self, user: int) -> Rights:
        return compile_rights(map(grant_of, await right_rows.of_user(self._database, user)))

    async def _rights_in(self, scope: Scope, token: principals.Token) -> Rights:
        """Return what a token's user has or, where its scope names groups, those groups have."""
        if scope.groups is None:
            return await self._rights_of(token.user_id)
        found = await right_rows.of_groups(self._database, token.user_id, scope.groups, member_or_not=token.is_admin)
        return compile_rights(map(grant_of, found))

    async def check_login(self, name: str, password: str, address: str) -> principals.User:
        """Return the user of that name and password, also one who must change it. Errors as ``authenticate``.

        The hash that is stored stays as it is: the caller may replace it.
        """
        return await self._logins.check(name, password, address, renews=False)

    async def hash_password(self, password: str) -> str:
        """Return what is stored of a password. Raises ``ValueError`` for one that cannot be."""
        return await self._verifier.hash(password)

    async def close(self) -> None:
        await stop(tuple(self._checks.values()))
        await self._logins.close()
        self._verifier.close()


def grant_of(row: right_rows.GrantRow) -> Grant:
    actions = frozenset(map(Permission, row.actions))
    return Grant(row.repositories, PathPatterns.of(row.includes, row.excludes), actions)


def parse(headers: Mapping[str, str]) -> Credentials | None:
    """Return the credentials in ``headers``: Basic, Bearer or X-JFrog-Art-Api. Raises ``Unauthenticated``."""
    header = headers.get("Authorization")
    if header is None:
        key = headers.get("X-JFrog-Art-Api")
        return Credentials(key) if key else None
    scheme, _, value = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return Credentials(value.strip())
        case "basic":
            return parse_basic(value)
        case _:
            raise Unauthenticated("Use Basic or Bearer authentication.")


def parse_basic(value: str) -> Credentials:
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise Unauthenticated("The Basic credentials cannot be read.") from None
    if not colon or "\0" in user + password:
        raise Unauthenticated("The Basic credentials cannot be read.")
    return Credentials(password, user)
