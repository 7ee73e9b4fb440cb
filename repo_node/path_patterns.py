"""Which paths of a repository its include and exclude patterns let in: pure.

Patterns are Ant's, separated by commas: ``**`` stands for any folders, ``*`` and ``?`` for a part of one name. They
exist twice, for Postgres and for Python; a test proves that both let in the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from repo_node.patterns import pieces

ALL = "**/*"
"""The include pattern of who says nothing: it keeps nothing out."""

NOTHING = "^$"
"""No path is empty."""

LIST_CHARACTERS_MAX = 4_096
LISTS_KEPT = 4_096
NAME_END = r"(?=/|\Z)"


def split_patterns(text: str) -> list[str]:
    """Return the patterns of a list in their one form. A name with ``**`` in it means ``*``; a folder, all in it."""
    return [tidy(pattern.strip()) for pattern in text.split(",") if pattern.strip()]


def tidy(pattern: str) -> str:
    path = f"{pattern}**" if pattern.endswith("/") else pattern
    names: list[str] = []
    for name in path.strip("/").split("/"):
        name = name if name == "**" else re.sub(r"\*+", "*", name)
        if name and not (name == "**" and names[-1:] == ["**"]):
            names.append(name)
    return "/".join(names)


def check_patterns(text: str) -> str:
    """Return a list of patterns without what surrounds it. Raises ``ValueError``."""
    if len(text) > LIST_CHARACTERS_MAX:
        raise ValueError(f"a list of patterns has at most {LIST_CHARACTERS_MAX} characters")
    if any(not character.isprintable() or character == "\\" for character in text):
        raise ValueError("a pattern has no control characters and no backslash: no path has")
    return text.strip()


def lets_all_in(text: str) -> bool:
    """Say whether a list of includes keeps nothing out."""
    patterns = split_patterns(text)
    return not patterns or ALL in patterns or "**" in patterns


def sql_regex(text: str) -> str | None:
    """Return what Postgres compares whole paths with, None for an empty list."""
    patterns = split_patterns(text)
    return f"^(?:{'|'.join(map(pieces, patterns))})$" if patterns else None


def accepts(includes: str, excludes: str, path: str) -> bool:
    """Say whether a path is let in by one list of patterns, or by one that is empty, and not kept out by another."""
    return (not includes or matches(includes, path)) and not (excludes and matches(excludes, path))


def matches(text: str, path: str) -> bool:
    """Say whether one pattern of a list matches a path."""
    return compiled(text).match(path) is not None


@lru_cache(LISTS_KEPT)
def compiled(text: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{translated(pattern)})" for pattern in split_patterns(text)) or r"(?!)", re.DOTALL)


def translated(pattern: str) -> str:
    """Return a regular expression for one pattern.

    What stands between two stars is taken at its first place and never looked for again (``(?>...)``): that is right
    for patterns of this kind, and no path, whatever an uploader calls it, takes longer than its length squared.
    """
    runs: list[list[str]] = [[]]
    for name in pattern.split("/"):
        runs.append([]) if name == "**" else runs[-1].append(name)
    first, *others = ("/".join(map(translated_name, run)) for run in runs)
    if not others:
        return first + r"\Z"
    *middle, last = others
    start = f"{first}/" if first else ""
    between = "".join(f"(?>(?:[^/]+/)*?{run}/)" for run in middle)
    return start + between + (rf"(?:[^/]+/)*{last}\Z" if last else ".+")


def translated_name(name: str) -> str:
    start, *rest = ("".join("[^/]" if c == "?" else re.escape(c) for c in part) for part in name.split("*"))
    return start + starred(rest) + NAME_END


def starred(parts: Sequence[str]) -> str:
    """Return what matches the parts that each follow a star; the last one stands at the end of the name."""
    if not parts:
        return ""
    *middle, last = parts
    return "".join(f"(?>[^/]*?{part})" for part in middle) + f"[^/]*{last}"
