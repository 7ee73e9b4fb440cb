"""What the tests of clients saw, call by call, and the table that is made of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

DOCUMENT = Path(__file__).parents[2] / "docs" / "artifactory-compatibility.md"
WRITE = "HOLDFAST_WRITE_COMPATIBILITY"

HEAD = """# What clients of Artifactory can do with Holdfast

Written by `make compatibility` from what the tests in `tests/clients` see against a running cluster of three nodes; a
test fails when it is not up to date. A call *works* when its result is the one that the client expects, *differs* as it
is told, and is *missing* when the client is refused.
"""

BASES = (
    *("api/storage", "api/metadata", "api/copy", "api/move", "api/archive/download", "api/versions"),
    *("api/repositories", "api/security/users", "api/security/groups", "api/security/permissions"),
    *("api/v2/security/permissions", "api/build", "api/security/apiKey", "api/replication"),
)
"""Below these, everything is somebody's own name."""


@dataclass(slots=True)
class Row:
    """One call of a client."""

    call: str
    requests: list[str] = field(default_factory=list)
    verdict: str = "works"
    note: str = ""
    last_status: int = 0

    def __str__(self) -> str:
        verdict = f"{self.verdict}: {self.note}" if self.note else self.verdict
        return f"| `{self.call}` | {', '.join(f'`{one}`' for one in self.requests)} | {verdict} |"


class Recorder:
    """Takes note of the calls of one client. What goes over the wire is told by ``note``."""

    def __init__(self, client: str, *, about: str = "") -> None:
        self.client = client
        self.about = about
        self.tests: set[str] = set()
        self._rows: dict[str, Row] = {}
        self._row: Row | None = None

    def note(self, method: str, url: str, status: int) -> None:
        """Note one request and the status of its answer."""
        if self._row is not None:
            self._row.last_status = status
            told = f"{method} {route_of(url)} {status}"
            if told not in self._row.requests:
                self._row.requests.append(told)

    @contextmanager
    def call(self, name: str, *, differs: str = "") -> Iterator[None]:
        """Note one call, which the block makes and proves; ``differs`` tells in what it is not as with Artifactory."""
        self._row = row = Row(name, verdict="differs" if differs else "works", note=differs)
        try:
            yield
        finally:
            self._row = None
        self._rows[name] = row

    @contextmanager
    def attempt(self, name: str, why: str) -> Iterator[None]:
        """Note one call that may be missing as yet, and ``why``; it is when the block ends with a refusal."""
        self._row = row = Row(name)
        try:
            yield
        except Exception:
            if row.last_status < 400:
                raise
            # Whatever the client makes of a refusal.
            row.verdict, row.note = "missing", why
        finally:
            self._row = None
        self._rows[name] = row

    def section(self) -> str:
        lines = [f"## {self.client}", ""]
        if self.about:
            lines += [self.about, ""]
        lines += ["| call | requests | |", "|---|---|---|", *map(str, self._rows.values())]
        return "\n".join(lines) + "\n"

    def settle(self) -> None:
        """Compare the section of this client with the one in the document, or write it where that is asked for."""
        text = DOCUMENT.read_text() if DOCUMENT.exists() else HEAD
        old = re.search(rf"^## {re.escape(self.client)}\n.*?(?=^## |\Z)", text, re.M | re.S)
        if os.environ.get(WRITE) == "1":
            sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
            sections[self.client] = self.section().partition("\n")[2]
            body = [f"## {name}\n{rest.rstrip()}\n" for name, rest in sorted(sections.items())]
            DOCUMENT.write_text("\n".join([HEAD, *body]))
            return
        assert old is not None and old[0].rstrip() == self.section().rstrip(), "stale: run make compatibility"


def route_of(url: str) -> str:
    """Return the route of a URL, without what is its sender's own."""
    parts = urlsplit(url)
    path = unquote(parts.path).removeprefix("/artifactory").lstrip("/")
    names = dict.fromkeys(key for key, _ in parse_qsl(parts.query, keep_blank_values=True))
    query = f"?{'&'.join(names)}" if names else ""
    for base in BASES:
        if path.startswith(f"{base}/"):
            return f"{base}/…{query}"
    if path.startswith(("api/", "access/")):
        return path + query
    matrix = ";…" if ";" in path else ""
    return ("…/" if path.partition(";")[0].endswith("/") else "…") + matrix + query
