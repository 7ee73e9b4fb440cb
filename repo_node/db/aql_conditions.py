"""Conditions of AQL as SQL over ``artifacts a``, made of the constants here and of bind parameters alone.

Blobs are looked up row by row: joined, all of them would be read for a page of results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from repo_node.aql.conditions import All, Condition, Either, FieldTest, PropertyTest, SameProperty, Sort
from repo_node.aql.fields import FIELDS, Kind
from repo_node.aql.tree import Operator
from repo_node.db.aql_operators import Arguments, compare, deny, holds
from repo_node.db.aql_properties import property_of_item, same_property
from repo_node.db.aql_repositories import NamedRepositories, Names

ROOT = "."
"""How AQL calls the folder at the root of a repository, which is '' in rows."""

TYPES = {"file": "(a.blob_id IS NOT NULL)", "folder": "(a.blob_id IS NULL)"}
BLOB_FIELD = "(SELECT k.{} FROM blobs k WHERE k.id = a.blob_id)"
DIGEST_COLUMNS = {Kind.SHA256: "sha256", Kind.SHA1: "sha1", Kind.MD5: "md5"}
COLUMNS = {
    "path": "a.folder",
    "name": "a.name",
    "created": "a.created_at",
    "created_by": 'a.created_by COLLATE "C"',
    "modified": "a.modified_at",
    "modified_by": 'a.modified_by COLLATE "C"',
    "updated": "a.updated_at",
    "size": f"coalesce({BLOB_FIELD.format('size')}, 0)",
    "depth": "(CASE a.folder WHEN '' THEN 1 ELSE 2 + length(a.folder) - length(replace(a.folder, '/', '')) END)",
    "stat.downloads": "a.downloads",
    "stat.downloaded": "a.downloaded_at",
    "stat.downloaded_by": 'a.downloaded_by COLLATE "C"',
}
FIXED: Mapping[str, int | None] = {
    "stat.remote_downloads": 0,
    "stat.remote_downloaded": None,
    "stat.remote_downloaded_by": None,
    "stat.remote_origin": None,
    "stat.remote_path": None,
}
"""What every item has alike: nobody fetches by way of another server."""

ALWAYS, NEVER = All(()), Either(())
MILLISECOND = timedelta(milliseconds=1)


class Compiler:
    """Writes conditions; a repository's name means what ``names`` say of it."""

    def __init__(self, names: Names, arguments: Arguments) -> None:
        self._repositories = NamedRepositories(names)
        self._arguments = arguments

    def within(self, condition: Condition) -> frozenset[int]:
        """Return the repositories outside which nothing fulfils ``condition``."""
        match condition:
            case All(parts):
                return self._repositories.every.intersection(*map(self.within, parts))
            case Either(parts):
                return frozenset().union(*map(self.within, parts))
            case FieldTest(kind=Kind.REPOSITORY):
                return self._repositories.within(condition)
            case _:
                return self._repositories.every

    def write(self, condition: Condition) -> str:
        """Return the SQL of a condition. It binds no value that its text does not name."""
        return self._write(self._simplify(condition))

    def _simplify(self, condition: Condition) -> Condition:
        """Return the condition without what holds of every item, or of none."""
        match condition:
            case All(parts):
                return self._joined(All, parts, neutral=ALWAYS, final=NEVER)
            case Either(parts):
                return self._joined(Either, parts, neutral=NEVER, final=ALWAYS)
            case FieldTest(field=field) if field in FIXED:
                return is_constant(self._fixed(condition))
            case FieldTest(kind=Kind.REPOSITORY) if (verdict := self._repositories.verdict(condition)) is not None:
                return is_constant(verdict)
            case FieldTest(kind=Kind.TYPE) if len(types_of(condition)) != 1:
                return is_constant(bool(types_of(condition)))
            case _:
                return condition

    def _joined(
        self, join: type[All] | type[Either], parts: Sequence[Condition], *, neutral: Condition, final: Condition
    ) -> Condition:
        simple = [part for part in map(self._simplify, parts) if part != neutral]
        if final in simple:
            return final
        return simple[0] if len(simple) == 1 else join(tuple(simple))

    def _write(self, condition: Condition) -> str:
        match condition:
            case All(parts):
                return f"({' AND '.join(map(self._write, parts))})" if parts else "true"
            case Either(parts):
                return f"({' OR '.join(map(self._write, parts))})" if parts else "false"
            case SameProperty(tests):
                return same_property(tests, self._arguments)
            case PropertyTest():
                return property_of_item(condition, self._arguments)
            case FieldTest():
                return self._test(condition)

    def _test(self, test: FieldTest) -> str:
        match test.kind:
            case Kind.REPOSITORY:
                return self._repositories.write(test, self._arguments)
            case Kind.TYPE:
                return TYPES[types_of(test)[0]]
            case Kind.FOLDER:
                return self._folder(test)
            case Kind.SHA256 | Kind.SHA1 | Kind.MD5:
                return self._digest(test)
            case Kind.TIME if isinstance(test.value, datetime):
                return self._time(COLUMNS[test.field], test.operator, test.value)
            case Kind.COUNT if test.value is None:
                return compare(COLUMNS[test.field], test.operator, 0, self._arguments)
            case _:
                return self._plain(COLUMNS[test.field], test)

    def _plain(self, expression: str, test: FieldTest) -> str:
        assert test.value is None or isinstance(test.value, str | int)
        return compare(expression, test.operator, test.value, self._arguments)

    def _fixed(self, test: FieldTest) -> bool:
        value = FIXED[test.field]
        return holds(test.operator, None if test.value is None and not value else value, test.value)

    def _folder(self, test: FieldTest) -> str:
        """Compare a folder. That of what lies at the root of its repository is not called as in its row."""
        below, at_root = self._plain(COLUMNS["path"], test), holds(test.operator, ROOT, test.value)
        if at_root == holds(test.operator, "", test.value):
            return below
        return f"({below} OR a.folder = '')" if at_root else f"({below} AND a.folder <> '')"

    def _digest(self, test: FieldTest) -> str:
        column = DIGEST_COLUMNS[test.kind]
        if not isinstance(test.value, bytes):
            return self._plain(f"encode({BLOB_FIELD.format(column)}, 'hex') COLLATE \"C\"", test)
        stands = self._arguments.add(test.value, "bytea")
        found = f"(a.blob_id = ANY (ARRAY(SELECT k.id FROM blobs k WHERE k.{column} = {stands})))"
        return deny(found) if test.operator is Operator.NE else found

    def _time(self, column: str, operator: Operator, at: datetime) -> str:
        """Compare a time by its milliseconds, which are all that a client ever sees of it."""
        match operator:
            case Operator.GTE:
                return f"({column} >= {self._moment(at)})"
            case Operator.GT:
                return f"({column} >= {self._moment(at + MILLISECOND)})"
            case Operator.LT:
                return f"({column} < {self._moment(at)})"
            case Operator.LTE:
                return f"({column} < {self._moment(at + MILLISECOND)})"
            case _:
                equal = f"({column} >= {self._moment(at)} AND {column} < {self._moment(at + MILLISECOND)})"
                return deny(equal) if operator is Operator.NE else equal

    def _moment(self, at: datetime) -> str:
        return self._arguments.add(at, "timestamptz")


def types_of(test: FieldTest) -> list[str]:
    """Return which of the two types of items a test means."""
    if test.value == "any":
        return list(TYPES) if test.operator is Operator.EQ else []
    return [name for name in TYPES if holds(test.operator, name, test.value)]


def is_constant(value: bool) -> Condition:
    return ALWAYS if value else NEVER


def sort_key(sort: Sort, keys: Mapping[int, str], arguments: Arguments) -> str:
    """Write by what items are sorted; those that have nothing of the kind come last. ``keys`` are repositories'."""
    direction = "DESC NULLS LAST" if sort.descending else "ASC NULLS LAST"
    kind = FIELDS[sort.field]
    if kind is Kind.REPOSITORY:
        ids = sorted(keys, key=keys.__getitem__)
        expression = f"array_position({arguments.add(ids, 'integer[]')}, a.repo_id)"
    elif kind is Kind.FOLDER:
        expression = "(CASE a.folder WHEN '' THEN '.' ELSE a.folder END)"
    elif kind is Kind.TYPE:
        expression = "(a.blob_id IS NULL)"
    elif kind in DIGEST_COLUMNS:
        expression = BLOB_FIELD.format(DIGEST_COLUMNS[kind])
    else:
        expression = COLUMNS.get(sort.field, "NULL::integer")
    return f"{expression} {direction}"
