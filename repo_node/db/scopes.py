"""The rows of artifacts that somebody may read, as a condition of statements."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

SUBTREES_MAX = 16
"""More are not told to Postgres: each is a look into the index, and work for the planner."""


@dataclass(frozen=True, slots=True)
class RowScope:
    """All rows of the repositories ``whole``, and of each in ``partial`` those whose path matches its expression."""

    whole: tuple[int, ...]
    partial: tuple[int, ...] = ()
    expressions: tuple[str, ...] = ()
    subtrees: tuple[tuple[int, str], ...] = ()
    """Folders (by repository) at or below one of which all of ``partial`` lies; '' is all of it. Empty: not known."""

    def within(self, repositories: Container[int]) -> RowScope:
        """Return the part of this that lies in ``repositories``."""
        partial = [one for one in zip(self.partial, self.expressions, strict=True) if one[0] in repositories]
        return RowScope(
            tuple(one for one in self.whole if one in repositories),
            tuple(id for id, _ in partial),
            tuple(expression for _, expression in partial),
            tuple(one for one in self.subtrees if one[0] in repositories),
        )


def in_scope(first: int, alias: str = "a") -> str:
    """Return the condition that a row of artifacts is in a scope, whose three arguments begin with ``$first``."""
    return f"""
        ({alias}.repo_id = ANY (${first}::integer[]) OR EXISTS (
            SELECT 1 FROM unnest(${first + 1}::integer[], ${first + 2}::text[]) AS s (repo, expression)
             WHERE s.repo = {alias}.repo_id
               AND concat_ws('/', nullif({alias}.folder, ''), {alias}.name) ~ s.expression))
    """


def scope_args(scope: RowScope) -> tuple[Any, ...]:
    """Return the arguments of ``in_scope``."""
    return list(scope.whole), list(scope.partial), list(scope.expressions)


def in_subtrees(scope: RowScope, first: int, alias: str = "a") -> tuple[str, list[Any]]:
    """Return a condition that all rows in a scope fulfil, and its arguments, from ``$first`` on.

    It says nothing that the scope does not, but in terms of the primary key: the index finds the little that somebody
    may read.
    """
    if not 0 < len(scope.subtrees) <= SUBTREES_MAX or not any(path for _, path in scope.subtrees):
        return "true", []
    args: list[Any] = []

    def stands(value: Any, type_name: str) -> str:
        args.append(value)
        return f"${first + len(args) - 1}::{type_name}"

    ways = [f"{alias}.repo_id = ANY ({stands(list(scope.whole), 'integer[]')})"] if scope.whole else []
    for repository, path in scope.subtrees:
        inside = f"{alias}.repo_id = {stands(repository, 'integer')}"
        if not path:
            ways.append(inside)
            continue
        folder, _, name = path.rpartition("/")
        low, high = stands(path, "text"), stands(f"{path}0", "text")
        ways.append(f"{inside} AND {alias}.folder >= {low} AND {alias}.folder < {high}")
        at = f"{alias}.folder = {stands(folder, 'text')} AND {alias}.name = {stands(name, 'text')}"
        ways.append(f"{inside} AND {at}")
    return f"({' OR '.join(f'({way})' for way in ways)})", args
