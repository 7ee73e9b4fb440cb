"""The checksums of content: as clients declare them, and as they are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from repo_node.errors import ChecksumMismatch
from sharding.model import ALL_DIGESTS

CHECKSUM_HEADERS = {"sha256": "X-Checksum-Sha256", "sha1": "X-Checksum-Sha1", "md5": "X-Checksum-Md5"}
"""By the digest's name, the header that declares it and the one that tells it."""


class Content(Protocol):
    """Content as its digests name it; one that was never computed is None."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> bytes: ...

    @property
    def sha1(self) -> bytes | None: ...

    @property
    def md5(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class DeclaredDigests:
    """Checksums the client declared, as bytes; None where it declared none."""

    sha256: bytes | None = None
    sha1: bytes | None = None
    md5: bytes | None = None
    names: tuple[str, ...] = field(init=False)
    """Which were declared, the safest first."""

    def __post_init__(self) -> None:
        declared = tuple([name for name in ALL_DIGESTS if getattr(self, name) is not None])
        object.__setattr__(self, "names", declared)

    def differing(self, content: Content) -> tuple[str, ...]:
        """Return which of the content's are not as they were declared."""
        found = []
        if self.sha256 is not None and self.sha256 != content.sha256:
            found.append("sha256")
        if self.sha1 is not None and self.sha1 != content.sha1:
            found.append("sha1")
        if self.md5 is not None and self.md5 != content.md5:
            found.append("md5")
        return tuple(found)

    def check(self, content: Content) -> None:
        """Raise ``ChecksumMismatch`` when the content is not what was declared."""
        for name in self.differing(content):
            declared, computed = getattr(self, name), getattr(content, name)
            raise ChecksumMismatch(
                f"Checksum error: {name} of the content is {computed.hex()}, declared was {declared.hex()}. "
                "Nothing was stored."
            )


def checksums_of(content: Content) -> dict[str, str]:
    """Return the digests that are known, in hex, as Artifactory's documents have them."""
    found = {"sha1": content.sha1, "md5": content.md5, "sha256": content.sha256}
    return {name: digest.hex() for name, digest in found.items() if digest is not None}
