"""Tokens that are made by tokens, and those that are refreshed, as rows; and when the rows go."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import api_keys, credentials, login_failures, principals, refresh_tokens, users
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.lease import Lease, NotPrimary
from repo_node.db.principals import MadeToken, Refreshable
from repo_node.db.refresh_tokens import NewSecrets, Refreshed
from repo_node.origin import Origin
from tests.repo_node.db.scene import Scene, become_primary, table, until_blocked

BY = Origin("x", "r")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ENDED = "UPDATE tokens SET expires_at = clock_timestamp() - $1::interval WHERE id = $2"


def secret(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def make(
    scene: Scene,
    text: str,
    parent: int | None = None,
    *,
    user: str = "admin",
    seconds: int | None = None,
    refresh: str | None = None,
) -> MadeToken:
    return await principals.create_token(
        scene.database,
        user,
        secret_sha256=secret(text),
        ending=text[-4:],
        description="",
        scopes=["read"],
        expires_in=None if seconds is None else timedelta(seconds=seconds),
        parent=parent,
        refresh=None if refresh is None else Refreshable(secret(refresh), DAY),
        by=BY,
    )


async def refresh(scene: Scene, old: str, new: str, of: str | None = None) -> Refreshed | None:
    """Use the refresh token ``old``; the token's secret becomes ``new``, its refresh token ``new-r``."""
    secrets = NewSecrets(secret(new), new[-4:], secret(f"{new}-r"), DAY)
    of_sha256 = None if of is None else secret(of)
    return await refresh_tokens.refresh(scene.database, secret(old), secrets, secret_sha256=of_sha256, by=BY)


async def works(scene: Scene, text: str) -> bool:
    return await principals.find_token(scene.database, secret(text)) is not None


async def test_s5_a_token_ends_no_later_than_the_one_that_made_it(scene: Scene) -> None:
    parent, _ = await make(scene, "parent", seconds=60)
    for asked, wanted in ((30, 30), (3600, 59), (None, 59)):
        child = await make(scene, f"child {asked}", parent, seconds=asked)
        assert child.expires_in_seconds is not None and wanted - 10 <= child.expires_in_seconds <= wanted
    eternal, nothing = await make(scene, "eternal")
    assert nothing is None and (await make(scene, "of eternal", eternal)).expires_in_seconds is None


async def test_s5_a_token_that_has_ended_makes_none(scene: Scene, connection: asyncpg.Connection) -> None:
    revoked, expired = (await make(scene, "a")).id, (await make(scene, "b", seconds=60)).id
    assert await principals.revoke_token(scene.database, revoked, by=BY)
    await connection.execute(ENDED, timedelta(0), expired)
    kind = api_keys.Kind("API key", "read")
    for parent in (revoked, expired):
        with pytest.raises(CatalogueUnavailable):
            await make(scene, "child", parent)
        key = api_keys.NewKey(secret("key"), "", parent)
        with pytest.raises(CatalogueUnavailable):
            await api_keys.make(scene.database, "admin", kind, key, replaces=True, by=BY)
    assert await table(connection, "SELECT count(*) FROM tokens") == [(2,)]


async def test_s32_a_token_is_revoked_with_all_that_it_made(scene: Scene, connection: asyncpg.Connection) -> None:
    top, _ = await make(scene, "top")
    child, _ = await make(scene, "child", top)
    grandchild, _ = await make(scene, "grandchild", child)
    await make(scene, "sibling")
    assert await principals.revoke_token(scene.database, child, by=BY)
    found = [await works(scene, text) for text in ("top", "child", "grandchild", "sibling")]
    assert found == [True, False, False, True]
    [(detail,)] = await table(connection, "SELECT detail FROM events WHERE kind = 'token_revoke'")
    assert json.loads(detail) == {"token": child, "revoked": [child, grandchild]}


async def test_s32_what_a_token_makes_while_it_is_revoked_is_revoked_too(
    scene: Scene, connection: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    top, _ = await make(scene, "top")
    async with connection.transaction():
        args = (secret("late"), "", "", ["read"], None, *BY, top, None, None)
        assert await connection.fetchrow(principals.CREATE_TOKEN.sql, "admin", *args)
        revoking = asyncio.create_task(principals.revoke_token(scene.database, top, by=BY))
        await until_blocked(watcher)
    assert await revoking
    assert not await works(scene, "late")


async def test_s32_a_token_makes_none_once_it_is_being_revoked(
    scene: Scene, connection: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    top, _ = await make(scene, "top")
    async with connection.transaction():
        await connection.fetchval("SELECT revoke_tokens($1)", [top])
        making = asyncio.create_task(make(scene, "too late", top))
        await until_blocked(watcher)
    with pytest.raises(CatalogueUnavailable):
        await making


MANY = """
    INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes, parent_id, expires_at)
    SELECT t.user_id, sha256((t.id || '/' || g)::bytea), '', '', t.scopes, t.id, $3
      FROM tokens t, generate_series(1, $2::integer) g WHERE t.id = $1
"""
VALID = "SELECT count(*) FROM tokens WHERE revoked_at IS NULL"


async def test_s32_a_token_that_made_thousands_is_revoked_first_and_they_are_in_steps(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    top, other = (await make(scene, "top")).id, (await make(scene, "other")).id
    await connection.execute(MANY, top, 6_000, None)
    ended = await connection.fetchval("SELECT revoke_tokens(ARRAY[$1::bigint], 10)", other)
    assert ended == [other]
    assert await principals.revoke_token(scene.database, top, by=BY)
    assert await connection.fetchval(VALID) == 0
    told = "SELECT jsonb_array_length(detail->'revoked') FROM events WHERE kind = 'token_revoke' ORDER BY id"
    assert await table(connection, told) == [(5_000,), (1_001,)]


async def test_s32_what_has_ended_by_itself_costs_a_revocation_nothing(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    top = (await make(scene, "top")).id
    long_ago = await connection.fetchval("SELECT clock_timestamp() - interval '1 hour'")
    await connection.execute(MANY, top, 100, long_ago)
    assert await connection.fetchval("SELECT revoke_tokens(ARRAY[$1::bigint])", top) == [top]


async def test_s32_a_key_that_replaces_itself_is_of_what_made_it_and_ends_with_that(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    kind, top = api_keys.Kind("API key", "read"), (await make(scene, "top")).id
    parent = top
    for number in range(3):
        new = api_keys.NewKey(secret(f"key {number}"), "abcd", parent)
        assert await api_keys.make(scene.database, "admin", kind, new, replaces=True, by=BY)
        found = await principals.find_token(scene.database, secret(f"key {number}"))
        assert found is not None
        parent = found.id
        assert await connection.fetchval("SELECT parent_id FROM tokens WHERE id = $1", parent) == top
        assert await principals.find_generation(scene.database, parent) == 2
    assert not await works(scene, "key 1") and await works(scene, "key 2")
    assert await principals.revoke_token(scene.database, top, by=BY)
    assert not await works(scene, "key 2")


async def test_the_generation_of_a_token_is_how_many_made_one_another(scene: Scene) -> None:
    token: int | None = None
    for number in range(1, 4):
        token = (await make(scene, f"t{number}", token)).id
        assert await principals.find_generation(scene.database, token) == number
    assert await principals.find_generation(scene.database, 10**12) == 0


async def test_a_deleted_users_tokens_go_with_what_they_made_for_others(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await users.save(scene.database, "boss", users.AccountChanges(is_admin=True), by=BY)
    parent, _ = await make(scene, "parent", user="boss")
    await make(scene, "child", parent)
    await make(scene, "mine")
    assert await users.delete(scene.database, "boss", by=BY)
    assert [await works(scene, text) for text in ("parent", "child", "mine")] == [False, False, True]
    assert await table(connection, "SELECT count(*) FROM tokens") == [(1,)]


# ---------------------------------------------------------------- refresh tokens


async def test_a_refresh_replaces_both_secrets_and_keeps_the_token(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    token, seconds = await make(scene, "one", seconds=3600, refresh="one-r")
    assert seconds == 3600
    await connection.execute(ENDED, HOUR, token)
    assert not await works(scene, "one")
    assert await refresh(scene, "one-r", "two", of="one") == Refreshed(token, "admin", ("read",), 3600)
    assert [await works(scene, text) for text in ("one", "two")] == [False, True]
    assert await refresh(scene, "two-r", "three") is not None
    assert [await works(scene, text) for text in ("two", "three")] == [False, True]
    rows = await table(connection, "SELECT kind, principal, detail FROM events WHERE kind = 'token_refresh'")
    assert rows == [("token_refresh", "admin", json.dumps({"user": "admin", "token": token}))] * 2
    stored = await table(connection, "SELECT t::text FROM tokens t UNION ALL SELECT r::text FROM used_refresh_tokens r")
    assert not any(text in str(stored) for text in ("one-r", "three"))


async def test_a_refresh_token_used_twice_ends_the_token_and_what_it_made(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    token, _ = await make(scene, "one", seconds=3600, refresh="one-r")
    child, _ = await make(scene, "child", token)
    await refresh(scene, "one-r", "two")
    assert await works(scene, "child")
    assert await refresh(scene, "one-r", "three") is None
    assert await refresh_tokens.revoke_used(scene.database, secret("one-r"), by=BY) == token
    assert [await works(scene, text) for text in ("two", "three", "child")] == [False] * 3
    assert await refresh(scene, "two-r", "four") is None
    assert await refresh_tokens.revoke_used(scene.database, secret("one-r"), by=BY) is None
    [(detail,)] = await table(connection, "SELECT detail FROM events WHERE kind = 'token_revoke'")
    assert json.loads(detail)["revoked"] == [token, child]


async def test_of_two_who_use_a_refresh_token_at_once_one_gets_another(scene: Scene) -> None:
    await make(scene, "one", seconds=3600, refresh="one-r")
    both = await asyncio.gather(refresh(scene, "one-r", "two"), refresh(scene, "one-r", "three"))
    assert sum(one is not None for one in both) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE tokens SET revoked_at = now()",
        "UPDATE tokens SET refreshable_until = clock_timestamp()",
        "UPDATE users SET is_enabled = false",
        "UPDATE users SET must_change_password = true",
    ],
)
async def test_a_refresh_token_is_worth_nothing(scene: Scene, connection: asyncpg.Connection, spoil: str) -> None:
    await make(scene, "one", seconds=3600, refresh="one-r")
    await connection.execute(spoil)
    assert await refresh(scene, "one-r", "two") is None
    assert await table(connection, "SELECT count(*) FROM used_refresh_tokens") == [(0,)]


async def test_a_refresh_token_refreshes_only_the_token_it_is_said_to_be_of(scene: Scene) -> None:
    await make(scene, "one", seconds=3600, refresh="one-r")
    await make(scene, "other", seconds=3600, refresh="other-r")
    assert await refresh(scene, "one-r", "two", of="other") is None
    assert await refresh(scene, "one-r", "two", of="one") is not None


async def test_s5_no_refresh_goes_beyond_the_end_of_the_token_that_made_it(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    parent, _ = await make(scene, "parent", seconds=7200)
    child, seconds = await make(scene, "child", parent, seconds=3600, refresh="child-r")
    assert seconds == 3600
    await connection.execute("UPDATE tokens SET expires_at = clock_timestamp() + '60 s' WHERE id = $1", parent)
    found = await refresh(scene, "child-r", "again")
    assert found is not None and 50 <= found.expires_in_seconds < 60
    late = "SELECT max(refreshable_until) - clock_timestamp() FROM tokens WHERE id = $1"
    assert await connection.fetchval(late, child) < timedelta(seconds=60)


async def test_what_can_be_refreshed_is_listed_and_revoked_by_any_of_its_secrets(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    token, _ = await make(scene, "one", seconds=3600, refresh="one-r")
    await connection.execute(ENDED, HOUR, token)
    [listed] = await principals.list_tokens(scene.database, "admin")
    assert listed.id == token and listed.is_refreshable
    for text, wanted in (("one", token), ("one-r", token), ("other", None)):
        assert await refresh_tokens.find_token_id(scene.database, secret(text)) == wanted
    assert await principals.revoke_token(scene.database, token, by=BY)
    assert await refresh_tokens.find_token_id(scene.database, secret("one-r")) is None


# ---------------------------------------------------------------- what ends is let go of


async def forget(scene: Scene, primary: Lease, count: int = 10) -> int:
    return await credentials.forget(scene.database, primary, kept_days=1, lock_seconds=60, count=count)


async def test_ended_tokens_go_after_a_while_and_before_those_that_made_them(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    primary = await become_primary(connection)
    old, _ = await make(scene, "old", seconds=60)
    child, _ = await make(scene, "child", old)
    for token in (old, child):
        await connection.execute(ENDED, 2 * DAY, token)
    lately, _ = await make(scene, "lately", seconds=60)
    await connection.execute(ENDED, HOUR, lately)
    refreshable, _ = await make(scene, "refreshable", seconds=60, refresh="refreshable-r")
    await connection.execute(ENDED, 2 * DAY, refreshable)
    lives, _ = await make(scene, "lives")
    revoked, _ = await make(scene, "revoked")
    await connection.execute(
        "UPDATE tokens SET revoked_at = clock_timestamp() - '2 days'::interval WHERE id = $1", revoked
    )
    assert [await forget(scene, primary) for _ in range(3)] == [2, 1, 0]
    assert await table(connection, "SELECT id FROM tokens ORDER BY id") == [(lately,), (refreshable,), (lives,)]
    told = await table(
        connection, "SELECT (detail->>'tokens')::int FROM events WHERE kind = 'token_forget' ORDER BY id"
    )
    assert told == [(2,), (1,)]


async def test_a_step_lets_go_of_a_bounded_number_of_rows(scene: Scene, connection: asyncpg.Connection) -> None:
    primary = await become_primary(connection)
    for number in range(3):
        token, _ = await make(scene, str(number), seconds=60)
        await connection.execute(ENDED, 2 * DAY, token)
    assert [await forget(scene, primary, 2) for _ in range(3)] == [2, 1, 0]


async def test_used_refresh_tokens_and_wrong_logins_go_too(scene: Scene, connection: asyncpg.Connection) -> None:
    primary = await become_primary(connection)
    await make(scene, "one", seconds=3600, refresh="one-r")
    await refresh(scene, "one-r", "two")
    await login_failures.note_failure(scene.database, "admin", "192.0.2.1", disguise="=x", lock_seconds=60)
    assert await forget(scene, primary) == 0
    await connection.execute("UPDATE used_refresh_tokens SET used_at = now() - '2 days'::interval")
    await connection.execute("UPDATE login_failures SET last_at = now() - '2 minutes'::interval")
    assert [await forget(scene, primary) for _ in range(2)] == [3, 0]
    assert await works(scene, "two")


async def test_nobody_but_the_primary_lets_go_of_tokens(scene: Scene, connection: asyncpg.Connection) -> None:
    await become_primary(connection)
    with pytest.raises(NotPrimary):
        await forget(scene, Lease(1, uuid4()))
