"""The rows of artifacts that somebody may read, as a condition of statements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RowScope:
    """All rows of the repositories ``whole``, and of each in ``partial`` those whose path matches its expression."""

    whole: tuple[int, ...]
    partial: tuple[int, ...] = ()
    expressions: tuple[str, ...] = ()


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
