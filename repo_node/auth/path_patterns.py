"""Include and exclude patterns of a permission target, as Ant reads them. Pure.

``**`` spans folders, ``*`` and ``?`` stay within one name, and ``a/**`` is the folder ``a`` too. A path is compared
name by name, in time that its length and the pattern's bound: nobody can write a pattern that takes long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property, lru_cache
from itertools import takewhile

from repo_node.patterns import re_escape

EVERYTHING = "**"
DEEP = "**"
NEVER = "x^"
"""A regular expression that nothing matches."""


@lru_cache(maxsize=4096)
def name_matcher(pattern: str) -> re.Pattern[str]:
    """Return what matches one name; the standard library makes it so that it takes linear time."""
    return re.compile(translate(pattern.replace("[", "[[]")))


class AntPattern:
    """One pattern. A leading slash means nothing, a trailing one stands for ``/**``."""

    def __init__(self, text: str) -> None:
        names = [name for name in text.strip().lstrip("/").split("/")]
        if names[-1] == "":
            names[-1] = DEEP
        # Several in a row mean no more than one.
        names = [name for place, name in enumerate(names) if names[max(place - 1, 0) : place + 1] != [DEEP, DEEP]]
        self.names = tuple(names)
        self.is_everything = all(name == DEEP for name in names)
        # The forms that most patterns have are compared without a walk through the names.
        *above, last = names
        literal = "/".join(above)
        self._below = literal if last == DEEP and not re.search(r"[*?]", literal) else None
        self._last = name_matcher(last) if above and all(name == DEEP for name in above) and last != DEEP else None

    def matches(self, path: str) -> bool:
        if self.is_everything:
            return True
        if self._below is not None:
            return path.startswith(self._below) and path[len(self._below) : len(self._below) + 1] in ("", "/")
        if self._last is not None:
            return bool(path) and self._last.match(path[path.rfind("/") + 1 :]) is not None
        return len(self.names) in self._after(path)

    def reaches(self, path: str) -> bool:
        """Say whether it can match a path, or something below it."""
        return self.is_everything or bool(self._after(path))

    def covers(self, path: str) -> bool:
        """Say whether it matches a path and whatever may lie below it."""
        return self.is_everything or (self.names[-1] == DEEP and len(self.names) - 1 in self._after(path))

    def _after(self, path: str) -> set[int]:
        """Return how far in the pattern one may be after the names of ``path``."""
        places = self._with_skips({0})
        for name in path.split("/") if path else ():
            places = self._with_skips(
                {
                    place if self.names[place] == DEEP else place + 1
                    for place in places
                    if place < len(self.names)
                    and (self.names[place] == DEEP or name_matcher(self.names[place]).match(name))
                }
            )
            if not places:
                break
        return places

    def _with_skips(self, places: set[int]) -> set[int]:
        """Add what comes after a ``**``, which may span no name at all."""
        for place in sorted(places):
            while place < len(self.names) and self.names[place] == DEEP:
                place += 1
                places.add(place)
        return places

    def expression(self) -> str:
        """Return the same as a regular expression for Postgres, without its ends."""
        if self.is_everything:
            return ".*"
        text, last = "", len(self.names) - 1
        for place, name in enumerate(self.names):
            if name == DEEP:
                text = f"{text.removesuffix('/')}(?:/.*)?" if place == last else f"{text}(?:[^/]+/)*"
            else:
                text += name_expression(name) + ("" if place == last else "/")
        return text

    @property
    def root(self) -> str:
        """The folder at or below which lies all that matches; '' where it may lie anywhere."""
        return "/".join(takewhile(lambda name: not re.search(r"[*?]", name), self.names[:-1]))

    def reach_expression(self) -> str:
        """Return a regular expression, without its ends, for the folders that ``reaches`` admits, '' among them."""
        text = ""
        for place in reversed(range(len(self.names))):
            slash = "/" if place else ""
            deeper = f"{slash}.*" if self.names[place] == DEEP else f"{slash}{name_expression(self.names[place])}{text}"
            text = f"(?:{deeper})?"
        return text


def name_expression(name: str) -> str:
    if not name.strip("*"):
        return "[^/]+"
    parts = re.split(r"(\*+|\?)", name)
    return "".join("[^/]*" if part[:1] == "*" else "[^/]" if part == "?" else re_escape(part) for part in parts)


@dataclass(frozen=True)
class PathPatterns:
    """Paths that fit one of ``includes`` and none of ``excludes``."""

    includes: tuple[AntPattern, ...]
    excludes: tuple[AntPattern, ...] = ()

    @classmethod
    def of(cls, includes: Sequence[str], excludes: Sequence[str]) -> PathPatterns:
        """Read patterns; no include pattern stands for everything."""
        return cls(
            tuple(map(AntPattern, filter(None, includes))) or (AntPattern(EVERYTHING),),
            tuple(map(AntPattern, filter(None, excludes))),
        )

    @cached_property
    def is_everything(self) -> bool:
        return not self.excludes and any(pattern.is_everything for pattern in self.includes)

    def allow(self, path: str) -> bool:
        """Say whether a path fits."""
        return self.is_everything or (
            any(pattern.matches(path) for pattern in self.includes)
            and not any(pattern.matches(path) for pattern in self.excludes)
        )

    def reach(self, path: str) -> bool:
        """Say whether a path fits, or something that may lie below it."""
        return self.is_everything or (
            any(pattern.reaches(path) for pattern in self.includes)
            and not any(pattern.covers(path) for pattern in self.excludes)
        )

    def cover(self, path: str) -> bool:
        """Say whether a path fits, and whatever may lie below it."""
        return self.is_everything or (
            any(pattern.covers(path) for pattern in self.includes)
            and not any(pattern.reaches(path) for pattern in self.excludes)
        )

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Folders at or below one of which lies all that fits; '' is the whole."""
        return tuple({pattern.root: None for pattern in self.includes})

    @cached_property
    def expression(self) -> str:
        """The same as a regular expression for Postgres, without its ends."""
        included = "|".join(pattern.expression() for pattern in self.includes)
        excluded = "|".join(pattern.expression() for pattern in self.excludes)
        return f"(?!(?:{excluded})$)(?:{included})" if excluded else f"(?:{included})"


def expression_of(patterns: Sequence[PathPatterns]) -> str | None:
    """Return a regular expression for what fits one of ``patterns``, as Postgres reads it; None where all does."""
    if any(one.is_everything for one in patterns):
        return None
    return f"^(?:{'|'.join(one.expression for one in patterns)})$" if patterns else NEVER


def reach_of(patterns: Sequence[PathPatterns]) -> str | None:
    """Return a regular expression for the folders in which something may fit one of ``patterns``; None for all.

    Excludes count for nothing: where it matches, there may be nothing. Where it does not, nothing is below either.
    """
    included = [pattern for one in patterns for pattern in one.includes]
    if any(pattern.names[0] == DEEP for pattern in included):
        return None
    return f"^(?:{'|'.join(pattern.reach_expression() for pattern in included)})$" if included else NEVER


def both(*expressions: str | None) -> str | None:
    """Return a regular expression for what matches all of these; None, among them too, stands for everything."""
    limits = [one for one in expressions if one is not None]
    return "".join(f"(?={one})" for one in limits[:-1]) + limits[-1] if limits else None
