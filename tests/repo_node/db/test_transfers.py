"""Copies and moves as rows: asked for again, they do and tell nothing twice."""

from __future__ import annotations

from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db.properties import Place
from repo_node.db.transfers import Page, Transfer, page
from repo_node.origin import Origin
from tests.repo_node.db.scene import Scene


async def transfer(scene: Scene, event: UUID, *, move: bool, source: str) -> Page:
    asked = Transfer(move, scene.repository, source, scene.repository, "target", Origin("alice", "request-1"))
    options = {"fail_fast": False, "dry": False}
    return await page(scene.database, asked, Place(), **options, items_max=100, path_bytes_max=1000, event=event)


@pytest.mark.parametrize("source", ["folder", "folder/one"])
@pytest.mark.parametrize("move", [False, True])
async def test_transfer_leaves_one_event_though_it_is_asked_for_again(
    scene: Scene, connection: asyncpg.Connection, move: bool, source: str
) -> None:
    for path in ("folder/one", "folder/two"):
        await scene.upload(path, path.encode())
    event = uuid4()
    for _ in range(2):
        await transfer(scene, event, move=move, source=source)
    events = await connection.fetch("SELECT kind, path, detail ->> 'items' AS items FROM events WHERE kind <> 'deploy'")
    items = "1" if "/" in source else "3"
    assert [tuple(row) for row in events] == [("move" if move else "copy", "target", items)]


async def test_transfer_that_is_another_one_leaves_its_own_event(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("one")
    for _ in range(2):
        await transfer(scene, uuid4(), move=False, source="one")
    assert await connection.fetchval("SELECT count(*) FROM events WHERE kind = 'copy'") == 2
