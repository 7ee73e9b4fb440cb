"""How a store is told to keep an object and asked for it: Holdfast, WebDAV, a container registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.connection import Connection, Head


class Wrong(Exception):
    """An answer that is not what it should be."""


class Dialect(Protocol):
    """One store's way; must survive pickling."""

    async def put(self, connection: Connection, name: str, size: int, blocks: Iterable[bytes]) -> str:
        """Store an object and return the path by which it is read again. Raises ``Wrong``."""
        ...


def expect(head: Head, *statuses: int) -> Head:
    if head.status not in statuses:
        raise Wrong(f"answered {head.status}")
    return head


@dataclass(frozen=True, slots=True)
class PlainPut:
    """One PUT to the path from which it is read: Holdfast, and WebDAV. ``properties``: in matrix parameters."""

    root: str
    properties: str = ""

    async def put(self, connection: Connection, name: str, size: int, blocks: Iterable[bytes]) -> str:
        path = f"{self.root}/{name}"
        expect(await connection.send("PUT", path + self.properties, size, blocks), 201)
        return path


@dataclass(frozen=True, slots=True)
class RegistryPush:
    """The push of a blob as container clients do it: POST, PATCH with the bytes, PUT with the digest."""

    repository: str

    async def put(self, connection: Connection, name: str, size: int, blocks: Iterable[bytes]) -> str:
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for block in blocks:
                digest.update(block)
                yield block

        begun = expect(await connection.send("POST", f"/v2/{self.repository}/blobs/uploads/", 0, ()), 202)
        octets = "Content-Type: application/octet-stream\r\n"
        sent = expect(await connection.send("PATCH", target_of(begun), size, hashed(), octets), 202)
        location, name = target_of(sent), f"sha256:{digest.hexdigest()}"
        joint = "&" if "?" in location else "?"
        expect(await connection.send("PUT", f"{location}{joint}digest={name}", 0, ()), 201)
        return f"/v2/{self.repository}/blobs/{name}"


def target_of(head: Head) -> str:
    """Return path and query of where an answer points."""
    parts = urlsplit(head.headers.get("location", ""))
    return parts.path + (f"?{parts.query}" if parts.query else "")


HOLDFAST = PlainPut("/artifactory/generic-local/bench")
HOLDFAST_PROPERTIES = PlainPut(HOLDFAST.root, ";build.name=bench;build.number=7")
SHA256_REPOSITORY = "sha256-local"
HOLDFAST_SHA256 = PlainPut(f"/artifactory/{SHA256_REPOSITORY}/bench")
