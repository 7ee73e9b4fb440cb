"""Patterns of ``$match``: ``*`` is any text, ``?`` a character; a backslash takes these, and itself, as they are."""

from __future__ import annotations

import re
from functools import lru_cache

PIECE = re.compile(r"\\([*?\\])|(.)", re.DOTALL)
ANY_TEXT, ANY_CHARACTER = "*", "?"


@lru_cache(maxsize=256)
def pieces(pattern: str) -> tuple[tuple[str, bool], ...]:
    """Return the characters of a pattern, and of each whether it is a wildcard."""
    found: list[tuple[str, bool]] = []
    for escaped, plain in PIECE.findall(pattern):
        piece = (escaped or plain, not escaped and plain in (ANY_TEXT, ANY_CHARACTER))
        if piece != (ANY_TEXT, True) or found[-1:] != [piece]:
            found.append(piece)
    return tuple(found)


def like(pattern: str) -> str:
    """Return the pattern as LIKE reads it."""
    text = ""
    for character, is_wild in pieces(pattern):
        if is_wild:
            text += "%" if character == ANY_TEXT else "_"
        else:
            text += f"\\{character}" if character in "\\%_" else character
    return text


def matches(pattern: str, text: str) -> bool:
    """Say whether all of ``text`` is like ``pattern``, in time that grows with their lengths' product at most."""
    wanted = pieces(pattern)
    at = position = 0
    retry: tuple[int, int] | None = None
    while position < len(text):
        if at < len(wanted) and wanted[at] == (ANY_TEXT, True):
            at += 1
            retry = (at, position)
        elif at < len(wanted) and (wanted[at] == (ANY_CHARACTER, True) or wanted[at] == (text[position], False)):
            at, position = at + 1, position + 1
        elif retry is not None:
            at, position = retry[0], retry[1] + 1
            retry = (at, position)
        else:
            return False
    return all(piece == (ANY_TEXT, True) for piece in wanted[at:])
