"""Writes a query as text that reads as the same query."""

from __future__ import annotations

import json
from collections.abc import Iterable

from repo_node.aql.tree import Criterion, Group, Query


def print_query(query: Query) -> str:
    text = f"items.find({{{', '.join(map(print_criterion, query.criteria))}}})"
    if query.include:
        text += f".include({print_names(query.include)})"
    if query.sort is not None:
        direction = "$desc" if query.sort.descending else "$asc"
        text += f'.sort({{"{direction}": [{print_names(query.sort.fields)}]}})'
    if query.offset:
        text += f".offset({query.offset})"
    if query.limit is not None:
        text += f".limit({query.limit})"
    return text + (".transitive()" if query.transitive else "")


def print_criterion(criterion: Criterion) -> str:
    if isinstance(criterion, Group):
        parts = ", ".join(f"{{{print_criterion(part)}}}" for part in criterion.parts)
        return f'"{criterion.join}": [{parts}]'
    return f'{quote(criterion.field)}: {{"{criterion.operator}": {print_value(criterion.value)}}}'


def print_value(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0") + "0"
    return quote(value) if isinstance(value, str) else json.dumps(value)


def print_names(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
