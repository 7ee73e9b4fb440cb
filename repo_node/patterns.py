"""Patterns in searches, as what Postgres compares with: pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from repo_node.db.searches import Span

WILD = re.compile(r"[*?]")
BEYOND_ALL = chr(0x10FFFF) * 100
"""Above every name and every folder."""


def like(pattern: str) -> str:
    """Return a pattern with ``*`` and ``?`` as LIKE reads it."""
    escaped = re.sub(r"[\\%_]", r"\\\g<0>", pattern)
    return escaped.replace("*", "%").replace("?", "_")


def is_wild(text: str) -> bool:
    return WILD.search(text) is not None


def literal_start(pattern: str) -> str:
    """Return what everything that matches begins with."""
    return WILD.split(pattern, maxsplit=1)[0]


def span(start: str) -> Span:
    """Return the span of all texts that begin with ``start``."""
    return Span(start, start + BEYOND_ALL)


def regex(pattern: str) -> str:
    """Return an Ant pattern for paths as a regular expression: ``**`` spans folders, ``*`` and ``?`` one name.

    It has no groups that repeat what repeats: it takes linear time.
    """
    return f"^{pieces(pattern)}$"


def pieces(pattern: str) -> str:
    parts = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?)", pattern)
    return "".join(TRANSLATED.get(part) or re_escape(part) for part in parts)


TRANSLATED = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def re_escape(text: str) -> str:
    """Return ``text`` so that Postgres and Python both read it literally."""
    return re.sub(r"[^\w/ -]", lambda found: "\\" + found[0] if found[0].isascii() else found[0], text)


def folder_span(pattern: str) -> Span:
    """Return the span of the folders in which whatever matches a pattern for paths lies."""
    start = literal_start(pattern)
    folder, slash, _ = start.rpartition("/")
    if not slash:
        return Span("", BEYOND_ALL) if (is_wild(pattern) and "/" in pattern) or "**" in pattern else Span("", chr(1))
    return Span(folder, BEYOND_ALL if not folder else f"{folder}0")


def name_start(pattern: str) -> str:
    """Return what the names of all that matches a pattern for paths begin with."""
    *above, last = pattern.split("/")
    # "x**/y" is "xy" too.
    joined = bool(above) and above[-1] != "**" and above[-1].endswith("**")
    return "" if joined or "**" in last else literal_start(last)


def gavc(group: str | None, artifact: str | None, version: str | None, classifier: str | None) -> tuple[str, str]:
    """Return a regular expression for the Maven coordinates, and an Ant pattern that contains what it matches."""

    def part(text: str | None, translate: Callable[[str], str] = str) -> str:
        return translate(text) if text else "*"

    folder = part(group, lambda text: text.replace(".", "/"))
    wide = f"{folder if group and not is_wild(group) else '**'}/{part(artifact)}/{part(version)}/*"
    groups = pieces(folder.replace("*", "**")) if group else ".*"
    name = f"{pieces(part(artifact))}-[^/]*" + (f"-{pieces(classifier)}" if classifier else "")
    return f"^{groups}/{pieces(part(artifact))}/{pieces(part(version))}/{name}\\.[^/]*$", wide
