"""What an administrator does to users and permission targets, now and then."""

from __future__ import annotations

import json
import random
import time

from tests.chaos.acts import Deed
from tests.chaos.client import Client, Request
from tests.chaos.ledger import ACCOUNTS, Item, Version
from tests.chaos.places import GUEST, target

USERS = 3
LETTERS = "r"


class Accounts:
    """One worker's users, and its permission target, by which ``GUEST`` may read the worker's artifacts or may not."""

    def __init__(self, admin: Client, worker: int, chance: random.Random) -> None:
        self._admin = admin
        self._ledger = admin.ledger
        self._worker = worker
        self._random = chance
        self._count = 0

    async def change(self) -> None:
        self._count += 1
        if self._random.random() < 0.4:
            await self._change_rights()
        else:
            await self._change_user()

    async def _change_user(self) -> None:
        name = f"user-{self._worker}-{self._random.randrange(USERS)}"
        url = f"{ACCOUNTS}users/{name}"
        history = self._ledger.history(url)
        if history.retired:
            return
        is_there = history.certain is not None
        if is_there and self._random.random() < 0.4:
            await self._perform("user_delete", url, name, None, Request("account", "DELETE", url, (200,), (), True))
            return
        email = f"{name}.{self._count}@example.org"
        document = {"email": email, "internalPasswordDisabled": True, "groups": []}
        await self._put("user", url, name, email, document, is_there)

    async def _change_rights(self) -> None:
        name = guest_target(self._worker)
        url = f"{ACCOUNTS}permissions/{name}"
        history = self._ledger.history(url)
        if not history.retired:
            is_there, pattern = history.certain is not None, self._random.choice(patterns(self._worker))
            await self._put("permission", url, name, pattern, target(GUEST, pattern, LETTERS), is_there)

    async def _put(
        self, what: str, url: str, name: str, told: str, document: dict[str, object], is_there: bool
    ) -> None:
        request = Request(
            "account",
            "PUT",
            url,
            (200, 201),
            body=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"},
        )
        kind = f"{what}_change" if is_there else f"{what}_create"
        await self._perform(kind, url, name, Item(told), request)

    async def _perform(self, kind: str, url: str, name: str, after: Version, request: Request) -> None:
        kinds = (kind, kind.replace("create", "change"))
        repeats = not kind.endswith("delete")
        deed = Deed(kinds, "", self._admin.name, detail={"name": name}, repeats=repeats)
        await self._admin.perform(self._ledger.begin(deed, {url: after}, time.time()), request)


def guest_target(worker: int) -> str:
    """Return the name of a worker's permission target."""
    return f"guest-{worker}"


def patterns(worker: int) -> tuple[str, str]:
    """Return what the permission target may let ``GUEST`` read: the worker's artifacts, or nothing."""
    return f"worker-{worker}/**", f"nothing-{worker}/**"
