"""One file from the cluster: received beside its final name, resumed by range, verified before the rename."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from repo_node.client.errors import BadAnswer, LocalFailure, WrongBytes
from repo_node.client.partial import Part, open_part
from repo_node.client.paths import RemotePath
from repo_node.client.progress import Progress
from repo_node.client.rest import PIECE_BYTES, Client
from repo_node.client.retry import persist

SHA256 = re.compile(r"[0-9a-f]{64}")
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an artifact, as the headers of an answer tell it. ``size`` is that of the whole file."""

    size: int
    sha256: str
    etag: str | None


@dataclass(frozen=True, slots=True)
class Received:
    """A download that is complete and verified; ``resumed_at_bytes`` is where its last attempt began."""

    size: int
    sha256: str
    resumed_at_bytes: int
    attempts: int


class FileDownload:
    """The download of ``source`` to ``destination`` by way of ``part_path``."""

    def __init__(
        self, client: Client, source: RemotePath, destination: Path, part_path: Path, progress: Progress
    ) -> None:
        self._client = client
        self._source = source
        self._destination = destination
        self._part_path = part_path
        self._progress = progress

    async def run(self) -> Received:
        """Download the file, repeating what may succeed later. Raises ``ClientError``.

        What has been received stays in the part file for the next run, unless it was wrong.
        """
        if await asyncio.to_thread(self._destination.is_dir):
            raise LocalFailure(f"{self._destination} is a directory; name another destination with -o")
        return await persist(
            self._attempt, self._client.retry, on_wait=lambda error, seconds: self._progress.wait(str(error), seconds)
        )

    async def _attempt(self, attempt: int) -> Received:
        async with open_part(self._part_path) as part:
            try:
                known = await self._find_start(part)
                start = part.size
                if known is None or start < known.size:
                    known, start = await self._receive(part, known)
                await self._finish(part, known)
            except OSError as error:
                raise LocalFailure.of(error, f"{self._part_path} cannot be written") from error
            return Received(part.size, known.sha256, start, attempt)

    async def _find_start(self, part: Part) -> Version | None:
        """Keep of an earlier attempt what belongs to today's version, and hash it; None when nothing is kept."""
        if part.size == 0:
            return None
        async with self._client.request("HEAD", self._source.url_path) as response:
            current = read_version(response)
        noted = await asyncio.to_thread(part.read_etag)
        if current.etag is None or part.size > current.size or noted not in (None, current.etag):
            await asyncio.to_thread(part.restart, current.etag)
            return None
        self._progress.begin("checking", part.size)
        await asyncio.to_thread(part.rewind)
        while count := await asyncio.to_thread(part.hash_piece, PIECE_BYTES):
            self._progress.advance(count)
        return current

    async def _receive(self, part: Part, known: Version | None) -> tuple[Version, int]:
        """Append what is missing; return the version received and the offset at which this began."""
        headers = {}
        if known is not None and known.etag is not None:
            headers = {"Range": f"bytes={part.size}-", "If-Range": known.etag}
        patience = self._client.patience()
        async with self._client.request("GET", self._source.url_path, headers=headers, patience=patience) as response:
            version = read_version(response)
            if response.status != 206:
                await asyncio.to_thread(part.restart, version.etag)
            elif version != known or range_start(response) != part.size:
                await asyncio.to_thread(part.discard)
                raise WrongBytes("the server sent another part of the file than it was asked for", retryable=True)
            start = part.size
            self._progress.begin("receiving", version.size, start)
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                await asyncio.to_thread(part.append, piece)
                self._progress.advance(len(piece))
                patience.renew()
        return version, start

    async def _finish(self, part: Part, version: Version) -> None:
        if part.digest.hexdigest() != version.sha256:
            await asyncio.to_thread(part.discard)
            raise WrongBytes(
                f"the {part.size} bytes received do not have the sha256 {version.sha256} that was announced; "
                f"they were thrown away",
                retryable=True,
            )
        try:
            await asyncio.to_thread(part.promote, self._destination)
        except OSError as error:
            raise LocalFailure.of(error, f"{self._destination} cannot be written") from error


def read_version(response: aiohttp.ClientResponse) -> Version:
    """Return what the headers say of the file. Raises ``BadAnswer`` where they give no sha256 to verify with."""
    etag = response.headers.get("ETag")
    if etag is not None and etag.startswith("W/"):
        etag = None
    sha256 = response.headers.get("X-Checksum-Sha256", (etag or "").strip('"')).lower()
    if not SHA256.fullmatch(sha256):
        raise BadAnswer("the server sent no X-Checksum-Sha256 to verify the download with; is a proxy dropping it?")
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    size = int(match[3]) if match else int(response.headers.get("Content-Length", 0))
    return Version(size, sha256, etag)


def range_start(response: aiohttp.ClientResponse) -> int | None:
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None
