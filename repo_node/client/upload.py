"""One file to the cluster: hashed, announced, sent, and compared with what the server says it stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aiofiles.threadpool import wrap

from repo_node.client.digests import FileDigests, hash_file, read_state
from repo_node.client.errors import BadAnswer, LocalFailure, Refused, Unreachable, WrongBytes
from repo_node.client.paths import RemotePath
from repo_node.client.progress import Progress
from repo_node.client.rest import PIECE_BYTES, Client
from repo_node.client.retry import persist

EXPECT_BYTES_MIN = 1 << 20
"""From this size the server is asked before the body is sent, so that a refusal costs no transfer."""

KNOWN_BYTES_MIN = 10 << 10
"""From this size the server is asked first whether it knows the content: below, the question costs what it saves."""

CHANGED = "the file changes while it is uploaded; wait until it is complete, then upload it again"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the server confirmed of one upload; ``attempts`` counts the tries it took.

    ``known`` says that it had the content already, and no byte was sent.
    """

    size: int
    sha256: str
    uri: str
    attempts: int
    known: bool


class FileUpload:
    """The upload of ``source`` to ``target``. A retry reads the file anew, and hashes it anew if it has changed.

    From ``known_bytes_min`` on, content that the server knows is deployed by its checksums alone.
    """

    def __init__(
        self,
        client: Client,
        source: Path,
        target: RemotePath,
        progress: Progress,
        *,
        known_bytes_min: int = KNOWN_BYTES_MIN,
    ) -> None:
        self._client = client
        self._source = source
        self._target = target
        self._progress = progress
        self._known_bytes_min = known_bytes_min
        self._digests: FileDigests | None = None
        self._unknown: FileDigests | None = None

    async def run(self) -> Stored:
        """Upload the file, repeating what may succeed later. Raises ``ClientError``."""
        return await persist(
            self._attempt, self._client.retry, on_wait=lambda error, seconds: self._progress.wait(str(error), seconds)
        )

    async def _attempt(self, attempt: int) -> Stored:
        async with open_source(self._source) as file:
            try:
                if self._digests is None or self._digests.state != read_state(file):
                    self._digests = await hash_file(file, self._progress)
                digests = self._digests
                await asyncio.to_thread(file.seek, 0)
            except OSError as error:
                raise LocalFailure.of(error, "the file cannot be read") from error
            answer = await self._deploy_known(digests)
            if known := answer is not None:
                self._progress.advance(digests.size)
            else:
                answer = await self._send(file, digests, attempt)
        return confirm(answer, digests, attempt, known=known)

    async def _deploy_known(self, digests: FileDigests) -> Any | None:
        """Ask the server to deploy content it knows; None when it wants the bytes."""
        if digests.size < self._known_bytes_min or digests == self._unknown:
            return None
        headers = {**checksum_headers(digests), "X-Checksum-Deploy": "true"}
        self._progress.begin("sending", digests.size)
        try:
            async with self._client.request("PUT", self._target.url_path, headers=headers) as response:
                return await self._client.read_json(response)
        except Refused as error:
            if error.status != 404:
                raise
        self._unknown = digests
        return None

    async def _send(self, file: BinaryIO, digests: FileDigests, attempt: int) -> Any:
        patience = self._client.patience()

        def on_piece(count: int) -> None:
            self._progress.advance(count)
            patience.renew()

        self._progress.begin("sending", digests.size)
        body = FileBody(file, digests.size, on_piece)
        try:
            async with self._client.request(
                "PUT",
                self._target.url_path,
                patience=patience,
                headers=headers_of(digests),
                data=body.pieces() if digests.size else b"",
                # A proxy that swallows the question must not stop every attempt.
                expect100=attempt == 1 and digests.size >= EXPECT_BYTES_MIN,
            ) as response:
                return await self._client.read_json(response)
        except Unreachable:
            if body.failure is not None:
                raise body.failure from None
            raise
        except Refused as error:
            if error.status == 409 and read_state(file) != digests.state:
                raise LocalFailure(CHANGED) from error
            raise


class FileBody:
    """The bytes of an open file as a request body of exactly ``size`` bytes.

    ``failure`` is set when the file was the reason that the body broke off: the session itself
    reports only a broken connection then.
    """

    def __init__(self, file: BinaryIO, size: int, on_piece: Callable[[int], None]) -> None:
        self._file = wrap(file)
        self._size = size
        self._on_piece = on_piece
        self.failure: LocalFailure | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces of at most ``PIECE_BYTES``; the next is read when the last was taken."""
        left = self._size
        while left:
            try:
                piece = await self._file.read(min(left, PIECE_BYTES))
            except OSError as error:
                self.failure = LocalFailure.of(error, "the file cannot be read")
                raise self.failure from error
            if not piece:
                self.failure = LocalFailure(CHANGED)
                raise self.failure
            left -= len(piece)
            yield piece
            self._on_piece(len(piece))


@asynccontextmanager
async def open_source(path: Path) -> AsyncIterator[BinaryIO]:
    """Open a local file for reading. Raises ``LocalFailure``."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except OSError as error:
        raise LocalFailure.of(error, "the file cannot be read") from error
    try:
        yield file
    finally:
        await asyncio.to_thread(file.close)


def headers_of(digests: FileDigests) -> dict[str, str]:
    return {
        "Content-Length": str(digests.size),
        "Content-Type": "application/octet-stream",
        **checksum_headers(digests),
    }


def checksum_headers(digests: FileDigests) -> dict[str, str]:
    return {
        "X-Checksum-Sha256": digests.sha256,
        "X-Checksum-Sha1": digests.sha1,
        "X-Checksum-Md5": digests.md5,
    }


def confirm(answer: Any, digests: FileDigests, attempts: int, *, known: bool) -> Stored:
    """Compare the server's answer with what was sent. Raises ``WrongBytes`` or ``BadAnswer``."""
    try:
        checksums = answer["checksums"]
        size, sha256, uri = int(answer["size"]), str(checksums["sha256"]), str(answer.get("uri", ""))
    except (LookupError, TypeError, ValueError):
        raise BadAnswer("the server's answer to the upload has no size and sha256; is it a Holdfast cluster?") from None
    if (size, sha256) != (digests.size, digests.sha256):
        raise WrongBytes(
            f"the server says it stored {size} bytes with sha256 {sha256}, but {digests.size} bytes with sha256 "
            f"{digests.sha256} were sent; what lies there now is not this file: upload it again or delete it",
            retryable=False,
        )
    return Stored(size, sha256, uri, attempts, known)
