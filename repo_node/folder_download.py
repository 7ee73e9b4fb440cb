"""The service that sends a folder as one archive, file by file, in memory that does not grow with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime

from repo_node.archives import ArchiveWriter
from repo_node.artifacts import Artifacts
from repo_node.auth.read_scope import ReadScope
from repo_node.checksums import checksums_of
from repo_node.db.artifacts import Blob
from repo_node.errors import BodyTooLarge, NotFound, Overloaded, RequestError
from repo_node.paths import ArtifactPath
from repo_node.settings import LiveSettings
from repo_node.trees import Depth, Trees

FILES = Depth(None, folders=False)


class FolderDownload:
    """Sends folders."""

    def __init__(self, artifacts: Artifacts, trees: Trees, settings: LiveSettings) -> None:
        self._artifacts = artifacts
        self._trees = trees
        self._settings = settings
        self._under_way = 0

    async def check(self, at: ArtifactPath, scope: ReadScope) -> None:
        """Raise ``BodyTooLarge`` when what ``scope`` has of a folder is larger than may be sent.

        Raises ``NotFound``, ``RequestError`` besides.
        """
        if at.name and (await self._artifacts.get(at)).blob is not None:
            if not scope.allows(at.repository, at.path):
                raise NotFound("File not found.")
            raise RequestError("Expected a folder, but this is a file.")
        now = self._settings.now
        count = size = 0
        async with aclosing(self._trees.list(at, FILES, scope)) as pages:
            async for page in pages:
                count += len(page)
                size += sum(entry.size or 0 for entry in page)
                if count > now.folder_download_items_max or size > now.folder_download_bytes_max:
                    raise BodyTooLarge(
                        f"The folder has more than {now.folder_download_items_max} files or "
                        f"{now.folder_download_bytes_max} bytes (settings folder_download_items_max and _bytes_max)."
                    )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one download for the length of the block. Raises ``Overloaded``."""
        if self._under_way >= self._settings.now.folder_downloads_in_flight_max:
            raise Overloaded("As many folders are being sent as may be at once; retry.")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def stream(
        self, at: ArtifactPath, scope: ReadScope, archive: ArchiveWriter, *, with_checksums: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the archive of what ``scope`` has, every block verified.

        What is deleted meanwhile is left out; what grows, is too.

        Raises ``BlobUnavailable``, ``CatalogueUnavailable``.
        """
        left = self._settings.now.folder_download_bytes_max
        async with aclosing(self._trees.list(at, FILES, scope)) as pages:
            async for page in pages:
                for entry in page:
                    try:
                        item = await self._artifacts.get(ArtifactPath(at.repository, entry.folder, entry.name))
                    except NotFound:
                        continue
                    if item.blob is None or item.blob.size > left:
                        continue
                    left -= item.blob.size
                    name = entry.path[len(at.path) :].lstrip("/")
                    async with aclosing(self._file(name, item.blob, item.modified_at, archive)) as pieces:
                        async for piece in pieces:
                            yield piece
                    if with_checksums:
                        yield checksum_files(name, item.blob, item.modified_at, archive)
        yield archive.close()

    async def _file(
        self, name: str, blob: Blob, modified_at: datetime, archive: ArchiveWriter
    ) -> AsyncGenerator[bytes, None]:
        yield archive.begin(name, blob.size, modified_at)
        if blob.size:
            async with aclosing(self._artifacts.open(blob).stream(0, blob.size - 1)) as pieces:
                async for piece in pieces:
                    yield await asyncio.to_thread(archive.data, piece)
        yield archive.end()


def checksum_files(name: str, blob: Blob, modified_at: datetime, archive: ArchiveWriter) -> bytes:
    """Return the entries that hold the checksums of a file."""
    written = b""
    for kind, digest in checksums_of(blob).items():
        data = digest.encode()
        written += archive.begin(f"{name}.{kind}", len(data), modified_at) + archive.data(data) + archive.end()
    return written
