"""What a client does to whole folders: each is one act, of all that lies in it or of nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.chaos.acts import Deed, Outcome
from tests.chaos.client import Client, Request, sha256
from tests.chaos.files import deploy, properties_request, put_request
from tests.chaos.ledger import Item, Version
from tests.chaos.places import LOCAL, SECOND, SUFFIX, folder_of, is_open
from tests.repo_node.archive_files import packed

NAMES = (f"one{SUFFIX}", f"deeper/two{SUFFIX}", f"deeper/three{SUFFIX}")
ITEMS = len(NAMES) + 2
"""With the folders."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder with the artifacts of ``NAMES``."""

    root: str

    @property
    def paths(self) -> list[str]:
        return [f"{self.root}/{name}" for name in NAMES]


class Trees:
    """One worker's trees. One of which anything is in doubt is left alone."""

    def __init__(self, admin: Client, builder: Client, worker: int, chance: random.Random) -> None:
        self._admin = admin
        self._builder = builder
        self._ledger = admin.ledger
        self._worker = worker
        self._random = chance
        self._made = 0
        self._trees: list[Tree] = []

    @property
    def count(self) -> int:
        return len(self._trees)

    async def make(self) -> None:
        tree = self._new_tree(is_open=self._random.random() < 0.5)
        if self._random.random() < 0.5:
            await self._make_from_archive(tree)
        else:
            await self._make_singly(tree)

    async def _make_from_archive(self, tree: Tree) -> None:
        if await deploy_archive(self._owner(tree), tree, self._random, is_atomic=self._random.random() < 0.5):
            self._trees.append(tree)

    async def _make_singly(self, tree: Tree) -> None:
        properties = {"tag": f"{self._worker}-0"}
        for path in tree.paths:
            body = self._random.randbytes(300)
            item = Item(sha256(body), frozenset(properties.items()))
            operation = self._ledger.begin(deploy(path, body, self._owner(tree)), {path: item}, time.time())
            outcome = await self._owner(tree).perform(operation, put_request(path, body, properties))
            if outcome is not Outcome.ACKNOWLEDGED or operation.is_doubtful:
                return
        self._trees.append(tree)

    async def annotate(self) -> None:
        """Set a property of all, or take one away."""
        if not (tree := self._choose()):
            return
        items = self._items(tree)
        has_stage = all("stage" in dict(item.properties) for item in items.values())
        if has_stage and self._random.random() < 0.4:
            put, drop = {}, ["stage"]
            request = properties_request("DELETE", tree.root, "stage", recursive=True)
        else:
            self._made += 1
            put, drop = {"stage": f"{self._worker}.{self._made}"}, []
            request = properties_request("PUT", tree.root, f"stage={put['stage']}", recursive=True)
        after = {path: item.changed(put, drop) for path, item in items.items()}
        detail = {"items": ITEMS, "set": {key: [value] for key, value in put.items()}, "dropped": drop}
        await self._perform(tree, "properties", tree.root, detail, after, request)

    async def transfer(self) -> None:
        """Copy or move to a new place, in either repository."""
        if not (tree := self._choose()):
            return
        items, verb = self._items(tree), self._random.choice(("copy", "move"))
        target = self._new_tree(is_open=is_open(tree.root + "/"))
        after: dict[str, Version] = dict(zip(target.paths, items.values(), strict=True))
        if verb == "move":
            after |= dict.fromkeys(tree.paths)
        detail = {"from": tree.root, "items": ITEMS}
        request = Request(verb, "POST", f"api/{verb}/{tree.root}", (200,), query={"to": f"/{target.root}"})
        if await self._perform(tree, verb, target.root, detail, after, request):
            self._trees.append(target)
            if verb == "move":
                self._trees.remove(tree)

    async def delete(self) -> None:
        if tree := self._choose():
            request = Request("delete", "DELETE", tree.root, (204,), leaves_nothing=True)
            if await self._perform(tree, "delete", tree.root, {"items": ITEMS}, dict.fromkeys(tree.paths), request):
                self._trees.remove(tree)

    async def _perform(
        self,
        tree: Tree,
        kind: str,
        place: str,
        detail: Mapping[str, object],
        after: Mapping[str, Version],
        request: Request,
    ) -> bool:
        """Do it; return whether it is surely done, at the first attempt. Where it is not, the tree is left alone."""
        client = self._owner(tree)
        operation = self._ledger.begin(Deed((kind,), place, client.name, detail=detail), after, time.time())
        outcome = await client.perform(operation, request)
        if outcome is Outcome.ACKNOWLEDGED and not operation.is_doubtful:
            return True
        self._trees.remove(tree)
        return False

    def _items(self, tree: Tree) -> dict[str, Item]:
        return {path: item for path in tree.paths if (item := self._ledger.history(path).certain) is not None}

    def _owner(self, tree: Tree) -> Client:
        return self._builder if is_open(tree.root + "/") else self._admin

    def _new_tree(self, *, is_open: bool) -> Tree:
        self._made += 1
        repository = self._random.choice((LOCAL, SECOND))
        return Tree(f"{folder_of(self._worker, is_open=is_open, repository=repository)}/tree-{self._made}")

    def _choose(self) -> Tree | None:
        return self._random.choice(self._trees) if self._trees else None


async def deploy_archive(client: Client, tree: Tree, chance: random.Random, *, is_atomic: bool) -> bool:
    """Deploy an archive that is unpacked there, its artifacts one after the other or all at one moment.

    Return whether that is surely done, at the first attempt.
    """
    bodies = {name: chance.randbytes(300) for name in NAMES}
    after = {f"{tree.root}/{name}": Item(sha256(body)) for name, body in bodies.items()}
    deeds = tuple(deploy(f"{tree.root}/{name}", body, client) for name, body in bodies.items())
    operation = client.ledger.begin(deeds, after, time.time(), as_one=is_atomic)
    headers = {f"X-Explode-Archive{'-Atomic' if is_atomic else ''}": "true"}
    request = Request("explode", "PUT", f"{tree.root}/it.tgz", (201,), body=packed("tgz", bodies), headers=headers)
    return await client.perform(operation, request) is Outcome.ACKNOWLEDGED and not operation.is_doubtful
