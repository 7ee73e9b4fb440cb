"""What a client does to single artifacts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from uuid import uuid4

from tests.chaos.acts import Deed, Outcome
from tests.chaos.client import Client, Request, send_part, sha256
from tests.chaos.ledger import Item, Operation
from tests.chaos.places import LOCAL, SECOND, SUFFIX, folder_of, is_open, through_view
from tests.cluster.ledger import GONE

SIZES = (100, 4_000, 90_000, 1_300_000)
SIZE_WEIGHTS = (6, 6, 4, 1)
TAGS = 4


class Files:
    """One worker's artifacts, and what it does to them."""

    def __init__(self, admin: Client, builder: Client, worker: int, chance: random.Random, shared: list[bytes]) -> None:
        self._admin = admin
        self._builder = builder
        self._ledger = admin.ledger
        self._worker = worker
        self._random = chance
        self._shared = shared
        self._count = 0
        self._paths: list[str] = []

    @property
    def count(self) -> int:
        return len(self._paths)

    async def put_new(self) -> None:
        await self.put(self._new_path(), self._body())

    async def overwrite(self) -> None:
        if path := self._writable():
            await self.put(path, self._body())

    async def put(self, path: str, body: bytes) -> None:
        """Deploy, perhaps with properties."""
        properties = self._properties() if self._random.random() < 0.5 else {}
        client = self._owner(path)
        await client.perform(self._begin_put(path, body, properties), put_request(path, body, properties))

    async def put_twice(self) -> None:
        """As a proxy may deliver it."""
        path, body, properties = self._new_path(), self._body(), self._properties()
        client, operation = self._owner(path), self._begin_put(path, body, properties)
        request = put_request(path, body, properties)
        outcomes = await asyncio.gather(*(client.attempt(operation, request) for _ in range(2)))
        is_done = Outcome.ACKNOWLEDGED in outcomes
        operation.end(Outcome.ACKNOWLEDGED if is_done else Outcome.UNKNOWN, time.time())

    async def leave(self) -> None:
        """Leave before the last byte of a body: nothing may come of it."""
        path = self._writable() or self._new_path()
        body = self._random.randbytes(self._random.choice(SIZES))
        operation = self._ledger.begin(deploy(path, body, self._admin), {path: Item(sha256(body))}, time.time())
        identity = f"chaos-{uuid4().hex}"
        act = operation.attempt(identity, time.time())
        try:
            await send_part(self._admin.url, path, body, self._random.randrange(len(body)), identity)
        except GONE:
            self._ledger.outcomes["put unsent"] += 1
        operation.note(act, Outcome.REFUSED, time.time())
        operation.end(Outcome.REFUSED, time.time())

    async def trespass(self) -> None:
        """Write where one has no right to: nothing may come of it."""
        closed = [path for path in self._paths if not is_open(path) and not self._ledger.history(path).retired]
        if closed:
            path, body = self._random.choice(closed), self._random.randbytes(SIZES[0])
            operation = self._ledger.begin(deploy(path, body, self._builder), {path: Item(sha256(body))}, time.time())
            await self._builder.perform(operation, Request("trespass", "PUT", path, (), (403,), body=body))

    async def delete(self) -> None:
        if path := self._writable():
            client, item = self._owner(path), self._item(path)
            deed = Deed(("delete",), path, client.name, item.sha256, {"items": 1})
            operation = self._ledger.begin(deed, {path: None}, time.time())
            await client.perform(operation, Request("delete", "DELETE", path, (204,), leaves_nothing=True))
            self._paths.remove(path)

    async def annotate(self) -> None:
        """Set properties, patch them, or take one away."""
        if not (path := self._writable()):
            return
        client, item = self._owner(path), self._item(path)
        there = dict(item.properties)
        put = self._properties()
        match self._random.choice(("set", "patch", "drop")):
            case "drop" if "build" in there:
                put, drop = {}, ["build"]
                request = properties_request("DELETE", path, "build")
            case "patch":
                drop = ["tag"] if "tag" in there else []
                put = {"build": put["build"]}
                request = patch_request(path, put, drop)
            case _:
                drop = []
                request = properties_request("PUT", path, ";".join(f"{key}={value}" for key, value in put.items()))
        detail = {"items": 1, "set": {key: [value] for key, value in put.items()}, "dropped": drop}
        deed = Deed(("properties",), path, client.name, detail=detail)
        await client.perform(self._ledger.begin(deed, {path: item.changed(put, drop)}, time.time()), request)

    async def transfer(self) -> None:
        """Copy or move to a new path, to which whoever does it has the same right."""
        if not (path := self._writable()):
            return
        client, item = self._owner(path), self._item(path)
        verb = self._random.choice(("copy", "move"))
        target = self._new_path(is_open=is_open(path))
        after = {target: item} | ({path: None} if verb == "move" else {})
        deed = Deed((verb,), target, client.name, item.sha256, {"from": path, "items": 1})
        operation = self._ledger.begin(deed, after, time.time())
        request = Request(
            verb, "POST", f"api/{verb}/{path}", (200,), leaves_nothing=verb == "move", query={"to": f"/{target}"}
        )
        await client.perform(operation, request)
        if verb == "move" or operation.is_doubtful:
            self._paths.remove(path)

    # ------------------------------------------------------------------ choices

    def _begin_put(self, path: str, body: bytes, properties: Mapping[str, str]) -> Operation:
        item = Item(sha256(body), frozenset(properties.items()))
        return self._ledger.begin(deploy(path, body, self._owner(path)), {path: item}, time.time())

    def _owner(self, path: str) -> Client:
        return self._builder if is_open(path) else self._admin

    def _item(self, path: str) -> Item:
        item = self._ledger.history(path).certain
        assert item is not None, f"nothing is at {path}"
        return item

    def _new_path(self, *, is_open: bool | None = None) -> str:
        self._count += 1
        chance = self._random
        folder = folder_of(
            self._worker,
            is_open=chance.random() < 0.4 if is_open is None else is_open,
            repository=SECOND if chance.random() < 0.3 else LOCAL,
        )
        path = f"{folder}/{self._count % 8}/{self._count}{SUFFIX}"
        self._paths.append(path)
        return path

    def _writable(self) -> str | None:
        """Return a path of this worker's at which something surely is, and that may be written."""
        histories = self._ledger.paths
        self._paths = [path for path in self._paths if path in histories and not histories[path].retired]
        there = [path for path in self._paths if histories[path].certain is not None]
        return self._random.choice(there) if there else None

    def _properties(self) -> dict[str, str]:
        """Return values of which one was never there before."""
        self._count += 1
        return {"tag": f"{self._worker}-{self._random.randrange(TAGS)}", "build": f"{self._worker}.{self._count}"}

    def _body(self) -> bytes:
        if self._random.random() < 0.35:
            return self._random.choice(self._shared)
        return self._random.randbytes(self._random.choices(SIZES, SIZE_WEIGHTS)[0])


def deploy(path: str, body: bytes, client: Client) -> Deed:
    return Deed(("deploy",), path, client.name, sha256(body), repeats=True)


def put_request(path: str, body: bytes, properties: Mapping[str, str]) -> Request:
    """Return the request that deploys: to the second repository through the virtual one."""
    url = through_view(path) if path.startswith(f"{SECOND}/") else path
    matrix = "".join(f";{key}={value}" for key, value in properties.items())
    return Request("put", "PUT", url + matrix, (201,), body=body, headers={"X-Checksum-Sha256": sha256(body)})


def properties_request(method: str, path: str, properties: str, *, recursive: bool = False) -> Request:
    query = {"properties": properties, "recursive": str(int(recursive))}
    return Request("annotate", method, f"api/storage/{path}", (204,), query=query)


def patch_request(path: str, put: Mapping[str, str], drop: list[str]) -> Request:
    body = json.dumps({"props": {**put, **dict.fromkeys(drop)}}).encode()
    return Request(
        "annotate",
        "PATCH",
        f"api/metadata/{path}",
        (204,),
        body=body,
        headers={"Content-Type": "application/json"},
        query={"recursive": "0"},
    )
