"""The secrets of the tests, and a watch that finds them where no secret may be: S33 over all that the tests do.

Each secret is known wherever it stands. Passwords that tests make up have ``MARK`` in them, tokens have a form and a
checksum of their own, and what is made at random is named to ``WATCH``, into which look the fixtures that run nodes.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Iterator
from functools import cache
from urllib.parse import quote

import asyncpg

from repo_node.auth.passwords import hash_password
from repo_node.auth.tokens import Kind, looks_like_token
from repo_node.logs import JsonFormatter

MARK = "canary-5dd1"
TOKEN = re.compile(r"[a-z]+_[a-z]+_[0-9A-Za-z]{40,}")
AROUND_CHARACTERS = 60
DATABASE_SECONDS = 10.0

DATABASE_AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
)
"""What ``Watch.look_into_database`` raises where there is nobody to ask, since a test took the database away."""

TABLES_SQL = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
# A row as text has its texts and documents as they are, and its bytes as hex digits.
ROWS_SQL = "SELECT string_agg(t::text, E'\\n') FROM \"{table}\" t"
LOGGERS = ("holdfast", "aiohttp", "asyncio")


def password(name: str) -> str:
    """Return a password that the watch knows wherever it stands."""
    return f"{MARK}-{name}"


@cache
def hashed(password: str) -> str:
    """Return a hash of ``password``, made once: it takes as long as a hash must take."""
    return hash_password(password)


def forms(secret: str) -> Iterator[str]:
    """Yield ``secret`` as it may be written: as it is, quoted, in hex digits, in base64 at any place of a text."""
    raw = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield raw.hex()
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + raw).decode()
        yield coded[(0, 2, 3)[offset] : 8 * (offset + len(raw)) // 6]


def is_token(text: str) -> bool:
    """Say whether ``text`` can be a token of any kind."""
    return any(looks_like_token(text, kind) for kind in Kind)


class Watch:
    """Looks for secrets, and keeps where it found some until somebody takes note."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._found: list[str] = []
        self.keep("a password", MARK)

    def keep(self, name: str, secret: str) -> None:
        """Look for ``secret`` too from now on."""
        self._names |= dict.fromkeys(forms(secret), name)

    def secrets_in(self, text: str) -> Iterator[str]:
        """Yield what stands in ``text``, and around what."""
        # One after the other: a pattern of all would try each of hundreds at each character.
        kept = [(form, name) for form, name in self._names.items() if form in text]
        found = [(one, name) for form, name in kept for one in re.finditer(re.escape(form), text)]
        found += [(one, "a token") for one in TOKEN.finditer(text) if is_token(one[0])]
        for one, name in found:
            yield f"{name} in: {text[max(0, one.start() - AROUND_CHARACTERS) : one.end() + AROUND_CHARACTERS]}"

    def look(self, where: str, text: str) -> None:
        """Find the secrets in ``text``."""
        self._found += [f"{where} has {what}" for what in self.secrets_in(text)]

    async def look_into_database(self, dsn: str) -> None:
        """Find the secrets in any column of any table. Raises ``DATABASE_AWAY``."""
        connection = await asyncpg.connect(dsn, timeout=DATABASE_SECONDS)
        try:
            for (table,) in await connection.fetch(TABLES_SQL, timeout=DATABASE_SECONDS):
                rows = await connection.fetchval(ROWS_SQL.format(table=table), timeout=DATABASE_SECONDS)
                self.look(f"a row of {table}", rows or "")
        finally:
            connection.terminate()

    def take(self) -> list[str]:
        """Return what was found since the last time."""
        found, self._found = self._found, []
        return found


WATCH = Watch()
"""What all tests of this process look into."""


class WatchingHandler(logging.Handler):
    """Looks into whatever is logged, as a node writes it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.look(f"a line of {record.name}", self.format(record))


def watched_logs(watch: Watch, loggers: Iterable[str] = LOGGERS) -> Iterator[None]:
    """Look into what is logged, down to the lines of requests, until the generator goes on."""
    handler, found = WatchingHandler(watch), [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.addHandler(handler)
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    yield
    for logger, level in zip(found, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
