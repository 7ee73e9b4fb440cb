"""What a repository's name means in AQL: the rows of one repository, or those that a virtual one shows of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from repo_node.aql.conditions import FieldTest
from repo_node.db.aql_operators import NEGATIVE, Arguments, deny, holds
from repo_node.db.scopes import RowScope, in_scope, scope_args

Names = Mapping[str, RowScope]


class NamedRepositories:
    """Answers tests of a repository's name from ``names``, without any row."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.every = frozenset(id for scope in names.values() for id in (*scope.whole, *scope.partial))

    def within(self, test: FieldTest) -> frozenset[int]:
        """Return the repositories outside which nothing fulfils ``test``."""
        meant = self._meant(test)
        if is_negative(test):
            return self.every.difference(meant.whole)
        return frozenset((*meant.whole, *meant.partial))

    def verdict(self, test: FieldTest) -> bool | None:
        """Say whether ``test`` holds of every row, or of none; None where it depends."""
        meant = self._meant(test)
        if self.every == frozenset(meant.whole):
            return not is_negative(test)
        return None if meant.whole or meant.partial else is_negative(test)

    def write(self, test: FieldTest, arguments: Arguments) -> str:
        meant = self._meant(test)
        if meant.partial:
            found = f"({in_scope(1 + len(arguments.values)).strip()})"
            arguments.values += scope_args(meant)
        else:
            found = f"(a.repo_id = ANY ({arguments.add(list(meant.whole), 'integer[]')}))"
        return deny(found) if is_negative(test) else found

    def _meant(self, test: FieldTest) -> RowScope:
        """Return the rows that the names mean which ``test`` asks for; of a negative one, which it denies."""
        asked = replace(test, operator=NEGATIVE[test.operator]) if is_negative(test) else test
        scopes = [scope for name, scope in self._names.items() if holds(asked.operator, name, asked.value)]
        whole = {id for scope in scopes for id in scope.whole}
        partial = [
            (id, expression)
            for scope in scopes
            for id, expression in zip(scope.partial, scope.expressions, strict=True)
            if id not in whole
        ]
        ids, expressions = (id for id, _ in partial), (expression for _, expression in partial)
        return RowScope(tuple(sorted(whole)), tuple(ids), tuple(expressions))


def is_negative(test: FieldTest) -> bool:
    return test.operator in NEGATIVE and test.value is not None
