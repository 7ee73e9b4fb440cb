"""What a client reads and searches, by each way and as each user, and compares with the ledger at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tests.chaos.client import Answer, Client, sha256
from tests.chaos.files import TAGS
from tests.chaos.ledger import Item
from tests.chaos.places import BUILDER, LOCAL, SUFFIX, VIRTUAL, is_open, through_view

STORAGE = "/artifactory/api/storage/"


class Reading:
    """One worker's reads, of anybody's artifacts."""

    def __init__(self, admin: Client, builder: Client, worker: int, chance: random.Random, shared: list[bytes]) -> None:
        self._admin = admin
        self._builder = builder
        self._ledger = admin.ledger
        self._worker = worker
        self._random = chance
        self._shared = shared

    async def read(self) -> None:
        """Read anything, but mostly what is there."""
        if path := self._path():
            client = self._client()
            refused = client.name == BUILDER and not is_open(path)
            url = self._way_to(path)
            await client.read(path, url, refused=refused)

    async def read_properties(self) -> None:
        if path := self._path():
            await self._admin.read_properties(path, self._way_to(path))

    async def search(self) -> None:
        search = self._random.choice((self._by_property, self._by_checksum, self._by_query))
        await search(self._client())

    async def _by_property(self, client: Client) -> None:
        tag = self._tag()
        moments = self._ledger.moments()
        answer = await client.ask("search", "api/search/prop", query={"tag": tag})
        if answer is not None and answer.status == 200:
            self._compare(client, moments, lambda item: ("tag", tag) in item.properties, hits_in(answer), answer.what)

    async def _by_checksum(self, client: Client) -> None:
        wanted = sha256(self._random.choice(self._shared))
        moments = self._ledger.moments()
        answer = await client.ask("search", "api/search/checksum", query={"sha256": wanted})
        if answer is not None and answer.status == 200:
            self._compare(client, moments, lambda item: item.sha256 == wanted, hits_in(answer), answer.what)

    async def _by_query(self, client: Client) -> None:
        """Ask in AQL for the items with a tag, for all of them or for some, in order or not."""
        tag, repository = self._tag(), self._random.choice((LOCAL, VIRTUAL))
        is_sorted, limit = self._random.random() < 0.5, self._random.choice((None, 3))
        text = query(repository, {"@tag": tag}, is_sorted=is_sorted, limit=limit)
        moments = self._ledger.moments()
        answer = await client.ask("aql", "api/search/aql", body=text)
        if answer is None or answer.status != 200:
            return
        found = items_in(answer.document)
        paths = list(found)
        if is_sorted and paths != sorted(paths, key=order):
            self._ledger.violate("I10", f"{answer.what} is not in order: {paths}")
        is_cut, last = len(paths) == limit, order(paths[-1]) if paths else ("", "", "")

        def is_due(path: str) -> bool:
            is_there = repository == VIRTUAL or path.startswith(f"{repository}/")
            return is_there and (not is_cut or (is_sorted and order(path) < last))

        def fits(path: str, item: Item) -> bool:
            # What was told of an item is to have been true of it as a whole.
            return ("tag", tag) in item.properties and (path not in found or item == found[path])

        self._found(client, moments, fits, paths, answer.what, is_due)

    def _compare(
        self,
        client: Client,
        moments: Mapping[str, int],
        wanted: Callable[[Item], bool],
        hits: Collection[str],
        what: str,
    ) -> None:
        self._found(client, moments, lambda path, item: wanted(item), hits, what, lambda path: True)

    def _found(
        self,
        client: Client,
        moments: Mapping[str, int],
        wanted: Callable[[str, Item], bool],
        hits: Collection[str],
        what: str,
        is_due: Callable[[str], bool],
    ) -> None:
        def is_meant(path: str, item: Item) -> bool:
            return (client.name != BUILDER or is_open(path)) and wanted(path, item)

        self._ledger.found(moments, is_meant, hits, what, due=is_due)

    # ------------------------------------------------------------------ choices

    def _client(self) -> Client:
        return self._random.choice((self._admin, self._builder))

    def _path(self) -> str | None:
        live = [path for path, _ in self._ledger.live()] if self._random.random() < 0.8 else []
        paths = live or [*self._ledger.paths]
        return self._random.choice(paths) if paths else None

    def _way_to(self, path: str) -> str:
        return through_view(path) if self._random.random() < 0.5 else path

    def _tag(self) -> str:
        return f"{self._worker}-{self._random.randrange(TAGS)}"


def order(path: str) -> tuple[str, str, str]:
    """Return what AQL sorts by, as ``query`` asks for it."""
    folder, _, name = path.rpartition("/")
    repository, _, folder = folder.partition("/")
    return repository, folder, name


def query(repository: str, criteria: Mapping[str, Any], *, is_sorted: bool, limit: int | None, offset: int = 0) -> str:
    """Return an AQL query for artifacts, with their contents and properties."""
    wanted = ", ".join(f'"{key}": "{value}"' for key, value in {"repo": repository, **criteria}.items())
    text = f'items.find({{{wanted}}}).include("repo", "path", "name", "sha256", "property")'
    if is_sorted:
        text += '.sort({"$asc": ["repo", "path", "name"]})'
    if offset:
        text += f".offset({offset})"
    return text if limit is None else f"{text}.limit({limit})"


def items_in(document: Any) -> dict[str, Item]:
    """Return the artifacts in AQL's answer, by path, in its order."""
    found = {}
    for one in document["results"]:
        properties = frozenset((part["key"], part["value"]) for part in one.get("properties", []))
        found[f"{one['repo']}/{one['path']}/{one['name']}"] = Item(one["sha256"], properties)
    return found


def hits_in(answer: Answer) -> set[str]:
    """Return the artifacts that a search found; of the folders nothing is said."""
    found = (one["uri"].partition(STORAGE)[2] for one in answer.document["results"])
    return {path for path in found if path.endswith(SUFFIX)}
