"""What each node says when all is over: by AQL, by searches, as each user, of each account."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.accounts import guest_target, patterns
from tests.chaos.client import Answer, Client
from tests.chaos.ledger import Item, Ledger, digests
from tests.chaos.places import BUILDER, GUEST, LOCAL, VIRTUAL, is_open
from tests.chaos.reading import hits_in, items_in, query

PAGE = 100
CONTENTS = 24
ATTEMPTS_MAX = 30


@dataclass(frozen=True, slots=True)
class Answers:
    """One node's.

    ``items`` are all artifacts, ``paged`` their paths by sorted pages, ``readable`` those that ``BUILDER`` finds,
    ``tagged`` and ``contents`` what searches for each property and each content find, ``accounts`` what is told of
    each, and ``admitted`` whether ``GUEST`` may read the path, of some paths.
    """

    items: Mapping[str, Item] = field(default_factory=dict)
    paged: tuple[str, ...] = ()
    readable: frozenset[str] = frozenset()
    tagged: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    contents: Mapping[str, frozenset[str]] = field(default_factory=dict)
    accounts: Mapping[str, str | None] = field(default_factory=dict)
    admitted: Mapping[str, bool] = field(default_factory=dict)


async def ask_node(url: str, ledger: Ledger, tokens: Mapping[str, str]) -> Answers:
    """Ask one node everything. Raises ``AssertionError`` where it does not answer."""
    async with (
        Client(url, ledger) as admin,
        Client(url, ledger, tokens[BUILDER], name=BUILDER) as builder,
        Client(url, ledger, tokens[GUEST], name=GUEST) as guest,
    ):
        items = items_in((await insist(admin, "aql", body=everything())).document)
        readable = items_in((await insist(builder, "aql", body=everything())).document)
        tags = sorted({pair for item in items.values() for pair in item.properties if pair[0] == "tag"})
        shared = sorted({item.sha256 for item in items.values()} & contents_of(ledger))
        return Answers(
            items,
            await pages(admin),
            frozenset(readable),
            {pair: await hits(admin, "prop", dict([pair])) for pair in tags},
            {sha256: await hits(admin, "checksum", {"sha256": sha256}) for sha256 in shared},
            {account: await told_of(admin, account) for account in ledger.accounts},
            {path: await is_admitted(guest, path) for path in await guarded(ledger)},
        )


def everything() -> str:
    return query(VIRTUAL, {}, is_sorted=False, limit=None)


def contents_of(ledger: Ledger) -> set[str]:
    """Return some contents: those that lie at most paths, or did."""
    seen = Counter(sha256 for history in ledger.paths.values() for sha256 in digests(history.possible) if sha256)
    return {sha256 for sha256, _ in seen.most_common(CONTENTS)}


async def pages(client: Client) -> tuple[str, ...]:
    found: list[str] = []
    while True:
        text = query(VIRTUAL, {}, is_sorted=True, limit=PAGE, offset=len(found))
        page = list(items_in((await insist(client, "aql", body=text)).document))
        found += page
        if len(page) < PAGE:
            return tuple(found)


async def hits(client: Client, kind: str, wanted: Mapping[str, str]) -> frozenset[str]:
    return frozenset(hits_in(await insist(client, kind, query=wanted)))


async def told_of(client: Client, account: str) -> str | None:
    """Return what a user's or a permission target's document says of what clients change, None where there is none."""
    answer = await insist(client, "account", url=account)
    document = answer.document
    return None if answer.status == 404 else document.get("email") or document["includesPattern"]


async def guarded(ledger: Ledger) -> list[str]:
    """Return, of each worker, a path that ``GUEST`` may read as long as the worker's permission target says so."""
    found: dict[str, str] = {}
    for path, _ in ledger.live():
        if path.startswith(f"{LOCAL}/") and not is_open(path):
            found.setdefault(path.split("/")[1], path)
    return sorted(found.values())


async def is_admitted(client: Client, path: str) -> bool:
    for _ in range(ATTEMPTS_MAX):
        status, _ = await client.read(path, counted=False)
        if status in (200, 403):
            return status == 200
        await asyncio.sleep(1)
    raise AssertionError(f"{client.url} does not say whether {path} may be read")


def may_admit(ledger: Ledger, path: str) -> set[bool]:
    """Return whether ``GUEST`` may read a path in the end; both, where that is not known."""
    worker = int(path.split("/")[1].removeprefix("worker-"))
    history = ledger.accounts.get(f"api/security/permissions/{guest_target(worker)}")
    if history is None:
        return {False}
    return {one is not None and one.sha256 == patterns(worker)[0] for one in history.possible}


SEARCHES = {"aql": "api/search/aql", "prop": "api/search/prop", "checksum": "api/search/checksum"}


async def insist(
    client: Client, kind: str, *, url: str = "", query: Mapping[str, str] | None = None, body: str | None = None
) -> Answer:
    """Ask until there is an answer."""
    for _ in range(ATTEMPTS_MAX):
        answer = await client.ask(f"last {kind}", url or SEARCHES[kind], query=query, body=body)
        if answer is not None and (answer.status == 200 or (answer.status == 404 and url)):
            return answer
        await asyncio.sleep(1)
    raise AssertionError(f"{client.url} does not answer {kind} {url}{dict(query or {})}")
