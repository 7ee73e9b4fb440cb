"""Cluster settings as rows: checked together, written one after the other, recorded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from repo_node import settings as typed
from repo_node.db import settings
from repo_node.origin import Origin
from repo_node.settings import SettingError, Settings
from tests.repo_node.db.scene import Queries, Scene, table


async def write(scene: Scene, key: str, value: Any) -> None:
    await settings.write(scene.database, key, value, by=Origin("bob", "r"), check=typed.combine)


@pytest.mark.parametrize(("key", "value"), [("redundancy", 3), ("write_quorum", None), ("read_hedge_seconds", 0.25)])
async def test_setting_is_read_back_as_it_was_written(scene: Scene, key: str, value: Any) -> None:
    assert await settings.read(scene.database) == {}
    await write(scene, key, value)
    assert await settings.read(scene.database) == {key: value}
    assert getattr(typed.combine(await settings.read(scene.database)), key) == value


async def test_every_default_can_be_written_and_read_back(scene: Scene) -> None:
    for key, value in Settings().model_dump().items():
        await write(scene, key, value)
    assert typed.combine(await settings.read(scene.database)) == Settings()


async def test_setting_written_again_replaces_the_first_and_leaves_two_events(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await write(scene, "redundancy", 3)
    await write(scene, "redundancy", 4)
    assert await table(connection, "SELECT value, updated_by FROM settings") == [("4", "bob")]
    rows = await table(
        connection, "SELECT detail, principal, request_id FROM events WHERE kind = 'setting' ORDER BY id"
    )
    assert [(json.loads(detail), by, request) for detail, by, request in rows] == [
        ({"key": "redundancy", "value": value}, "bob", "r") for value in (3, 4)
    ]


async def test_reset_setting_has_its_default_again_and_leaves_an_event(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    by: dict[str, Any] = {"by": Origin("bob", "r"), "check": typed.combine}
    for key in ("redundancy", "trash_days"):
        await write(scene, key, 3)
        asked = await connection.fetchval("SELECT asked FROM census")
        for _ in range(2):
            await settings.reset(scene.database, key, **by)
        assert await connection.fetchval("SELECT asked FROM census") - asked == (key == "redundancy")
    assert await settings.read(scene.database) == {}
    events = await table(connection, "SELECT detail FROM events WHERE detail ? 'reset' ORDER BY id")
    assert [json.loads(row[0])["key"] for row in events] == ["redundancy", "trash_days"]


async def test_reset_that_the_other_settings_contradict_is_refused(scene: Scene) -> None:
    await write(scene, "redundancy", 3)
    await write(scene, "write_quorum", 3)
    with pytest.raises(SettingError, match="write_quorum"):
        await settings.reset(scene.database, "redundancy", by=Origin("bob", "r"), check=typed.combine)
    assert (await settings.read(scene.database))["redundancy"] == 3


@pytest.mark.parametrize(("key", "value"), [("redundancy", 0), ("no_such", 1), ("node_down_seconds", True)])
async def test_bad_setting_is_refused_and_writes_nothing(
    scene: Scene, connection: asyncpg.Connection, queries: Queries, key: str, value: Any
) -> None:
    with pytest.raises(SettingError, match=key):
        await write(scene, key, value)
    assert await settings.read(scene.database) == {}
    assert await table(connection, "SELECT count(*) FROM events") == [(0,)]
    assert ("settings_write", "error") in queries.seen, "a refusal is not an outage"


async def test_two_writes_that_contradict_each_other_do_not_both_pass(scene: Scene) -> None:
    await write(scene, "redundancy", 3)
    results = await asyncio.gather(
        write(scene, "redundancy", 2), write(scene, "write_quorum", 3), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "SettingError"]
    typed.combine(await settings.read(scene.database))


async def test_settings_are_readable_while_one_is_being_written(scene: Scene, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute(settings.LOCK)
        assert await asyncio.wait_for(settings.read(scene.database), 5) == {}


async def test_silence_of_a_node_has_the_same_default_in_sql(scene: Scene, connection: asyncpg.Connection) -> None:
    """``node_is_up`` cannot see the defaults of ``Settings``: the number stands in both places."""
    seconds = Settings().node_down_seconds
    sql = "SELECT node_is_up(n) FROM nodes n WHERE id = 'n1'"
    for silence, up in ((seconds - 1, True), (seconds + 1, False)):
        await connection.execute(
            "UPDATE nodes SET heartbeat_at = clock_timestamp() - make_interval(secs => $1)", float(silence)
        )
        assert await connection.fetchval(sql) is up
