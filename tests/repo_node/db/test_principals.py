"""Users and tokens as rows: only what is valid now is found."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from repo_node.db import principals
from repo_node.db.errors import CatalogueUnavailable
from repo_node.origin import Origin
from tests.repo_node.db.scene import Scene, table


def secret(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def create(scene: Scene, text: str, user: str = "admin", **more: Any) -> int:
    values: dict[str, Any] = {
        "secret_sha256": secret(text),
        "ending": text[-4:],
        "description": "for tests",
        "scopes": ["read", "write"],
        "expires_in": None,
        "by": Origin("x", "r"),
    }
    return (await principals.create_token(scene.database, user, **values | more)).id


async def test_user_is_found_by_the_exact_name_while_enabled(scene: Scene, connection: asyncpg.Connection) -> None:
    user = await principals.find_user(scene.database, "admin")
    assert user is not None
    assert (user.name, user.is_admin) == ("admin", True)
    assert user.password_hash.startswith("$argon2id$")
    for name in ("Admin", "admin ", "", "nobody"):
        assert await principals.find_user(scene.database, name) is None
    await connection.execute("UPDATE users SET is_enabled = false")
    assert await principals.find_user(scene.database, "admin") is None


async def test_token_is_found_by_its_secret_alone(scene: Scene, connection: asyncpg.Connection) -> None:
    identity = await create(scene, "secret-abcd")
    token = await principals.find_token(scene.database, secret("secret-abcd"))
    assert token is not None
    assert (token.id, token.user, token.is_admin, token.ending) == (identity, "admin", True, "abcd")
    assert (token.description, token.scopes) == ("for tests", ("read", "write"))
    assert token.expires_at is None and token.expires_in_seconds is None
    assert await principals.find_token(scene.database, secret("secret-abce")) is None
    assert await principals.find_token(scene.database, b"") is None
    [(detail, by)] = await table(connection, "SELECT detail, principal FROM events WHERE kind = 'token_create'")
    assert (json.loads(detail), by) == ({"token": identity, "user": "admin", "scopes": ["read", "write"]}, "x")


async def test_token_stores_no_secret(scene: Scene, connection: asyncpg.Connection) -> None:
    await create(scene, "secret-abcd")
    for sql in ("SELECT t::text FROM tokens t", "SELECT e::text FROM events e"):
        assert all("secret-abcd" not in row[0] for row in await connection.fetch(sql))


async def test_token_expires_by_the_databases_clock(scene: Scene, connection: asyncpg.Connection) -> None:
    await create(scene, "short", expires_in=timedelta(seconds=60))
    token = await principals.find_token(scene.database, secret("short"))
    assert token is not None and token.expires_in_seconds is not None
    assert 50 < token.expires_in_seconds <= 60
    await connection.execute("UPDATE tokens SET expires_at = clock_timestamp()")
    assert await principals.find_token(scene.database, secret("short")) is None
    assert await principals.list_tokens(scene.database) == []


async def test_revoked_token_is_gone_at_once(scene: Scene, connection: asyncpg.Connection) -> None:
    one, two = await create(scene, "one"), await create(scene, "two")
    assert [token.id for token in await principals.list_tokens(scene.database)] == [one, two]
    assert await principals.revoke_token(scene.database, one, by=Origin("bob", "r"))
    assert await principals.find_token(scene.database, secret("one")) is None
    assert [token.id for token in await principals.list_tokens(scene.database)] == [two]
    assert not await principals.revoke_token(scene.database, one, by=Origin("bob", "r"))
    assert not await principals.revoke_token(scene.database, 4711, by=Origin("bob", "r"))
    rows = await table(connection, "SELECT principal, detail FROM events WHERE kind = 'token_revoke'")
    assert [(by, json.loads(detail)) for by, detail in rows] == [("bob", {"token": one})]


async def test_token_of_a_disabled_user_is_worth_nothing(scene: Scene, connection: asyncpg.Connection) -> None:
    await create(scene, "one")
    await connection.execute("UPDATE users SET is_enabled = false")
    assert await principals.find_token(scene.database, secret("one")) is None
    with pytest.raises(CatalogueUnavailable):
        await create(scene, "two")


async def test_token_of_nobody_is_not_made(scene: Scene, connection: asyncpg.Connection) -> None:
    with pytest.raises(CatalogueUnavailable, match="nobody"):
        await create(scene, "one", user="nobody")
    assert await table(connection, "SELECT count(*) FROM events") == [(0,)]


async def test_token_loses_its_users_admin_rights_with_the_user(scene: Scene, connection: asyncpg.Connection) -> None:
    await create(scene, "one")
    await connection.execute("UPDATE users SET is_admin = false")
    token = await principals.find_token(scene.database, secret("one"))
    assert token is not None and not token.is_admin


async def test_two_tokens_never_share_a_secret(scene: Scene) -> None:
    await create(scene, "same")
    with pytest.raises(asyncpg.UniqueViolationError):
        await create(scene, "same")


async def test_token_without_scopes_is_refused(scene: Scene) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await create(scene, "one", scopes=[])
