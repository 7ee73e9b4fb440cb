"""Scopes of tokens: permissions, or Artifactory's words for whose rights a token carries. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repo_node.auth.permissions import SCOPES

APPLIED = "applied-permissions/"
OF_USER, OF_ADMIN, OF_GROUPS = f"{APPLIED}user", f"{APPLIED}admin", f"{APPLIED}groups:"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token carries: the rights of its user or, where named, of ``groups`` alone.

    ``permissions`` narrow them; None: they do not. ``wants_admin`` says that an administrator's were asked for.
    """

    permissions: frozenset[str] | None
    groups: tuple[str, ...] | None = None
    wants_admin: bool = False


class UnknownScope(ValueError):
    """There is no such scope; the message is its name."""


def read_scope_words(words: Iterable[str]) -> Scope:
    """Read the scopes of a token. Raises ``UnknownScope``."""
    permissions: set[str] = set()
    groups: set[str] | None = None
    whole = wants_admin = False
    for word in words:
        if word in SCOPES:
            permissions.add(word)
        elif word in (OF_USER, OF_ADMIN):
            whole, wants_admin = True, wants_admin or word == OF_ADMIN
        elif word.startswith(OF_GROUPS) and (names := split_groups(word.removeprefix(OF_GROUPS))):
            groups = (groups or set()) | names
        else:
            raise UnknownScope(word)
    narrowed = frozenset(permissions) if permissions or not (whole or groups) else None
    return Scope(narrowed, None if whole or groups is None else tuple(sorted(groups)), wants_admin)


def split_groups(text: str) -> set[str]:
    return {name.strip().strip('"') for name in text.split(",")} - {""}
