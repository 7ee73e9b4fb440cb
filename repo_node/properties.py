"""The service for properties: reading what a request says of them, and changing those of an artifact or a tree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from repo_node.db import properties as rows
from repo_node.db.pool import Database
from repo_node.db.properties import Changes, Place
from repo_node.errors import NotFound, RequestError, absent
from repo_node.origin import Origin
from repo_node.outcome import until_known
from repo_node.paths import PROPERTIES_MAX, ArtifactPath, check_property_key, check_property_value, each_once
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings

PAGE = 5_000
"""Items changed in one transaction: a tree up to this size changes as a whole, a larger one in steps."""

Scalar = str | bool | int | float
Value = Scalar | list[Scalar] | None
"""What a property is to be, as JSON has it; null, and no value at all, drop it."""

ESCAPED = re.compile(r"\\(.)|([,;|=])", re.DOTALL)


def parse_properties(text: str) -> dict[str, tuple[str, ...]]:
    """Read ``a=1,2;b=3``: properties end at ``;`` or ``|``, a backslash takes the next character as it is.

    Raises ``BadPath`` for a name or a value that cannot be, ``RequestError`` for too many.
    """
    found: dict[str, list[str]] = {}
    for key, values in split_properties(text):
        found.setdefault(check_property_key(key), []).extend(map(check_property_value, values))
    if not 0 < len(found) <= PROPERTIES_MAX:
        raise RequestError(f"properties must name 1 to {PROPERTIES_MAX} properties: name=value[,value];name=value.")
    return {key: each_once(values) for key, values in found.items()}


def split_properties(text: str) -> list[tuple[str, list[str]]]:
    """Return the parts of a list of properties, with their escapes resolved."""
    parts: list[list[str]] = [[""]]
    end = 0
    for found in ESCAPED.finditer(text):
        parts[-1][-1] += text[end : found.start()]
        end = found.end()
        escaped, separator = found.groups()
        if separator in (";", "|"):
            parts.append([""])
        elif separator == ("=" if len(parts[-1]) == 1 else ","):
            parts[-1].append("")
        else:
            parts[-1][-1] += escaped if separator is None else separator
    parts[-1][-1] += text[end:]
    return [(key, values or [""]) for key, *values in parts if key or values]


def read_patch(props: Mapping[str, Value]) -> Changes:
    """Return the changes that are asked for. Raises ``BadPath``."""
    put = {check_property_key(key): values_of(value) for key, value in props.items() if value not in (None, [])}
    return Changes(put, [check_property_key(key) for key in props if key not in put])


def values_of(value: Value) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return each_once(check_property_value(text_of(one)) for one in values if one is not None)


def text_of(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Properties:
    """Changes the properties of what is there."""

    def __init__(
        self, database: Database, repositories: Repositories, recent: RecentItems, settings: LiveSettings
    ) -> None:
        self._database = database
        self._repositories = repositories
        self._recent = recent
        self._settings = settings

    async def change(self, at: ArtifactPath, changes: Changes, *, recursive: bool, by: Origin) -> None:
        """Change the properties of an artifact or a folder, with ``recursive`` of all in it too.

        A tree of more than ``PAGE`` items changes in steps; one that was interrupted goes on when it is repeated.
        The root of a repository has no properties: what lies in it has. Raises ``NotFound``, ``RequestError``,
        ``TooManyProperties``, ``OutcomeUnknown``, ``ReadOnly``.
        """
        if not (at.name or recursive):
            raise RequestError("A repository has no properties of its own; what lies in it has (recursive=1).")
        repository = await self._repositories.get_own(at.repository)
        seen, count, after = 0, PAGE, Place()
        try:
            while count == PAGE:
                require_writable(self._settings, begun=seen > 0)
                count, after = await self._step(repository.id, at, changes, recursive, after, by)
                seen += count
        finally:
            self._recent.forget_tree(at) if recursive else self._recent.forget(at)
        if at.name and not seen:
            missing = NotFound(f"Unable to find item {at.repository}:{at.path}.")
            raise absent(missing, fresh=self._repositories.is_fresh)

    async def _step(
        self,
        repository_id: int,
        at: ArtifactPath,
        changes: Changes,
        recursive: bool,
        after: Place,
        by: Origin,
    ) -> tuple[int, Place]:
        now = self._settings.now
        known = await until_known(
            lambda: rows.change(
                self._database,
                repository_id,
                at.folder,
                at.name,
                changes,
                recursive=recursive,
                after=after,
                items_max=PAGE,
                bytes_max=now.properties_bytes_max,
                by=by,
            ),
            wait_seconds=now.outcome_wait_seconds,
        )
        return known.result


def without(properties: Sequence[str]) -> Changes:
    """Return the changes that drop these. Raises ``BadPath``."""
    return Changes({}, [check_property_key(key) for key in properties])
