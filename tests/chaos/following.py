"""Somebody who follows the audit log while faults last, from event to event, and is to miss none."""

from __future__ import annotations

import asyncio

from tests.chaos.client import Client

URL = "api/holdfast/audit"
PAUSE_SECONDS = 1.0
PAGE = 200
LAST_PAGES_MAX = 600
QUIET_PAGES = 3


async def follow(client: Client, stop: asyncio.Event) -> None:
    """Follow until ``stop`` is set."""
    while not stop.is_set():
        await follow_page(client)
        await asyncio.sleep(PAUSE_SECONDS)


async def follow_to_end(client: Client) -> None:
    """Follow until nothing more comes; what is written without end, by the cluster itself, is not waited for."""
    quiet = 0
    for _ in range(LAST_PAGES_MAX):
        is_more = await follow_page(client)
        quiet = 0 if is_more is None or is_more else quiet + 1
        if quiet == QUIET_PAGES:
            return
        await asyncio.sleep(0 if is_more else PAUSE_SECONDS / 2)


async def follow_page(client: Client) -> bool | None:
    """Take down the next events; return whether more are waiting, None where there was no answer."""
    ledger = client.ledger
    answer = await client.ask("audit", URL, query={"after": str(ledger.follows_from), "limit": str(PAGE)})
    if answer is None or answer.status != 200:
        return None
    ledger.followed += [one["id"] for one in answer.document["events"]]
    ledger.follows_from = answer.document["next"]
    return bool(answer.document["more"])
