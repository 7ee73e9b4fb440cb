"""The outcome of one upload or download command: what was done, what failed, and how that is told."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import click

from repo_node.cli.progress import say_total
from repo_node.cli.wording import printable, say_count

LISTED_MAX = 100


@dataclass(slots=True)
class Report:
    """Grows while transfers run. ``verb`` is "uploaded" or "downloaded"."""

    verb: str
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    untried: int = 0
    stopped: bool = False
    started_at: float = field(default_factory=time.monotonic)

    def add(self, **facts: Any) -> None:
        """Add a transfer that is complete; ``bytes`` is its size."""
        self.done.append(facts)

    def add_failure(self, path: str, reason: str) -> str:
        """Add a transfer that failed and return the line that says so."""
        self.failed.append({"path": path, "reason": reason})
        return f"{path}: {reason}"

    def close(self, *, as_json: bool) -> None:
        """Tell the outcome and end the command: with status 0 when everything was done, else 1."""
        complete = not (self.failed or self.untried or self.stopped)
        seconds = time.monotonic() - self.started_at
        count_bytes = sum(facts["bytes"] for facts in self.done)
        if as_json:
            document = {
                self.verb: self.done,
                "failed": self.failed,
                "untried": self.untried,
                "complete": complete,
                "bytes": count_bytes,
                "seconds": round(seconds, 3),
            }
            click.echo(json.dumps(document, indent=2))
        elif complete or self.done:
            click.echo(say_total(self.verb.capitalize(), len(self.done), count_bytes, seconds))
        if not complete:
            click.echo("\n".join(self._failure_lines()), err=True)
            raise click.exceptions.Exit(1)

    def _failure_lines(self) -> list[str]:
        if len(self.failed) == 1 and not (self.done or self.untried):
            # Its line was shown when it happened.
            return ["Correct this and run the same command again."]
        lines = [f"{len(self.failed):,} failed:"] if self.failed else []
        lines += [printable(f"  {failure['path']}: {failure['reason']}") for failure in self.failed[:LISTED_MAX]]
        if len(self.failed) > LISTED_MAX:
            lines.append(f"  and {len(self.failed) - LISTED_MAX:,} more; --json lists all")
        if self.untried:
            lines.append(f"{say_count(self.untried, 'more file')} not tried, because the rest would fail alike.")
        elif self.stopped:
            lines.append("What may have been left was not tried, because it would fail alike.")
        lines.append(f"Correct this and run the same command again; what was {self.verb} stays.")
        return lines
