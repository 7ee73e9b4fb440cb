"""Users, groups and permission targets as rows: changed by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from repo_node.db import groups, permission_targets, principals, users
from repo_node.db.errors import CatalogueUnavailable
from repo_node.origin import Origin
from tests.repo_node.db.scene import Scene, table, until_blocked

BY = Origin("x", "r")
NOBODY = users.AccountChanges()
TARGET = permission_targets.Target("t", [], [], [], {}, {"g": ["read"]})


Act = Callable[[Scene], Awaitable[Any]]


def group(scene: Scene) -> Awaitable[Any]:
    return groups.save(scene.database, "other", description=None, auto_join=None, members=["u"], by=BY)


def user(scene: Scene) -> Awaitable[Any]:
    return users.save(scene.database, "other", users.AccountChanges(groups=["g"]), by=BY)


def target(scene: Scene) -> Awaitable[Any]:
    return permission_targets.save(scene.database, TARGET, by=BY)


def token(scene: Scene) -> Awaitable[Any]:
    return principals.create_token(
        scene.database, "u", secret_sha256=bytes(32), ending="", description="", scopes=["read"], expires_in=None, by=BY
    )


@pytest.mark.parametrize(
    ("gone", "act", "refusal"),
    [
        ("users WHERE name = 'u'", group, None),
        ("groups WHERE name = 'g'", user, None),
        ("groups WHERE name = 'g'", target, users.UnknownName),
        ("users WHERE name = 'u'", token, CatalogueUnavailable),
    ],
)
async def test_what_is_deleted_at_this_moment_is_waited_for_and_not_referred_to(
    scene: Scene,
    connection: asyncpg.Connection,
    watcher: asyncpg.Connection,
    gone: str,
    act: Act,
    refusal: type[Exception] | None,
) -> None:
    await users.save(scene.database, "u", NOBODY, by=BY)
    await groups.save(scene.database, "g", description=None, auto_join=None, members=None, by=BY)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"DELETE FROM {gone}")
    acting = asyncio.ensure_future(act(scene))
    await until_blocked(watcher)
    await transaction.commit()
    if refusal is None:
        assert await acting is True
        assert await table(connection, "SELECT * FROM group_members") == []
    else:
        with pytest.raises(refusal):
            await acting


async def test_a_user_is_deleted_with_the_token_that_was_being_made(
    scene: Scene, connection: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    await users.save(scene.database, "u", NOBODY, by=BY)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes) "
        "SELECT id, $1, '', '', '{read}' FROM users WHERE name = 'u'",
        bytes(32),
    )
    deleting = asyncio.ensure_future(users.delete(scene.database, "u", by=BY))
    await until_blocked(watcher)
    await transaction.commit()
    assert await deleting
    assert await table(connection, "SELECT * FROM tokens") == []
