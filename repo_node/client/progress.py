"""What a transfer tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The watcher of one transfer. Calls come from the event loop and must return at once."""

    def begin(self, stage: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """A stage ("hashing", "sending", "receiving") starts, or starts again after a failure."""

    def advance(self, count_bytes: int) -> None:
        """So many more bytes of the stage are done."""

    def wait(self, reason: str, seconds: float) -> None:
        """An attempt failed for ``reason``; the next one starts after ``seconds``."""
