"""Reads a query. Its criteria look like JSON and are none: a name may come twice in an object, and count both times."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput, v_args
from lark.exceptions import LarkError, UnexpectedEOF, VisitError

from repo_node.aql.tree import AqlError, Comparison, Criterion, Group, Join, Operator, Order, Query, Value

GRAMMAR = r"""
query: DOMAIN "." "find" "(" [object ("," object)*] ")" clause*

?clause: "." "include" "(" [STRING ("," STRING)*] ")" -> include
       | "." "sort" "(" "{" STRING ":" "[" STRING ("," STRING)* "]" "}" ")" -> sort
       | "." "offset" "(" NUMBER ")" -> offset
       | "." "limit" "(" NUMBER ")" -> limit
       | "." "transitive" "(" ")" -> transitive
       | "." "distinct" "(" (TRUE | FALSE) ")" -> distinct

object: "{" [_pair ("," _pair)*] "}"
_pair: group | equality | comparison
group: STRING ":" "[" [_element ("," _element)*] "]"
_element: object | _pair
equality: STRING ":" _scalar
comparison: STRING ":" "{" operation ("," operation)* "}"
operation: STRING ":" _scalar
         | STRING ":" "{" STRING ":" STRING "}"
_scalar: STRING | NUMBER | TRUE | FALSE | NULL

DOMAIN: /[A-Za-z_]+(?:\.(?!find\b)[A-Za-z_]+)*/
STRING: /"[^"\\]*(?:\\.[^"\\]*)*"/s
NUMBER: /-?[0-9]{1,18}(?:\.[0-9]{1,9})?(?![0-9.eE])/
TRUE: "true"
FALSE: "false"
NULL: "null"
WHITE: /[ \t\r\n]+/
%ignore WHITE
"""
NESTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{(])|([\]})])', re.DOTALL)
ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
PLAIN_ESCAPES = {'"': '"', "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
NEGATED = {(Operator.NE, Operator.MATCH): Operator.NMATCH, (Operator.NE, Operator.EQ): Operator.NE}


def parse(text: str, *, nesting_max: int) -> Query:
    """Return the query that ``text`` is. Raises ``AqlError``, and nothing else."""
    check_nesting(text, nesting_max)
    try:
        query = PARSER.parse(text)
    except UnexpectedEOF:
        raise AqlError("The query ends too early.") from None
    except UnexpectedInput as error:
        raise AqlError(describe(error, text)) from None
    except VisitError as error:
        raise AqlError(str(error.orig_exc)) from None
    except LarkError as error:
        raise AqlError("The query cannot be read.") from error
    assert isinstance(query, Query)
    return query


def check_nesting(text: str, nesting_max: int) -> None:
    """Refuse what is nested too deeply before anything is built of it. Raises ``AqlError``."""
    depth = 0
    for found in NESTED.finditer(text):
        if found[1]:
            depth += 1
            if depth > nesting_max:
                raise AqlError(f"The query is nested deeper than {nesting_max} brackets (setting aql_nesting_max).")
        elif found[2]:
            depth -= 1


def describe(error: UnexpectedInput, text: str) -> str:
    position = error.pos_in_stream
    if (
        position is None
        or position >= len(text.rstrip())
        or getattr(getattr(error, "token", None), "type", "") == "$END"
    ):
        return "The query ends too early."
    return f"The query cannot be read at line {error.line}, column {error.column}: {text[position : position + 20]!r}."


def unquote(token: str) -> str:
    """Return the text in a quoted string. A backslash before what needs none stays, as patterns want it."""
    inner = token[1:-1]
    if "\\" not in inner:
        return inner

    def resolve(found: re.Match[str]) -> str:
        escaped = found[1]
        if len(escaped) == 5:
            return chr(int(escaped[1:], 16))
        return "\\" if escaped == "\\" else PLAIN_ESCAPES.get(escaped, found[0])

    # Halves of a pair make one character; a half alone stays and is refused with the other text that nobody can keep.
    return ESCAPE.sub(resolve, inner).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def value_of(token: Token) -> Value:
    match token.type:
        case "NULL":
            return None
        case "NUMBER":
            return float(token) if "." in token else int(token)
        case "STRING":
            return unquote(token)
        case _:
            return str(token)


def operator_of(token: str) -> Operator:
    try:
        return Operator(unquote(token).lower())
    except ValueError:
        raise AqlError(f"There is no operator {unquote(token)[:40]!r}.") from None


@v_args(inline=True)
class Builder(Transformer[Token, Query]):
    """Makes the tree while the text is read. An object is the list of its criteria: where it stands joins them."""

    def query(self, domain: Token, *parts: Any) -> Query:
        if domain.lower() not in ("items", "item"):
            raise AqlError(f"Only items can be asked for here (items.find), not {str(domain)[:40]}.")
        objects = [part for part in parts if isinstance(part, list)]
        query = Query(tuple(criterion for criteria in objects for criterion in criteria))
        seen: set[str] = set()
        for clause in parts:
            if isinstance(clause, dict):
                if seen & set(clause):
                    raise AqlError(f"{min(clause)} is said twice.")
                seen |= set(clause)
                query = replace(query, **{name: value for name, value in clause.items() if name != "distinct"})
        return query

    def include(self, *names: Token | None) -> dict[str, Any]:
        return {"include": tuple(unquote(name) for name in names if name is not None)}

    def sort(self, direction: Token, *names: Token) -> dict[str, Any]:
        order = unquote(direction).lower()
        if order not in ("$asc", "$desc"):
            raise AqlError(f"A query is sorted by $asc or $desc, not {order[:40]!r}.")
        return {"sort": Order(tuple(map(unquote, names)), descending=order == "$desc")}

    def offset(self, number: Token) -> dict[str, Any]:
        return {"offset": whole(number, "offset")}

    def limit(self, number: Token) -> dict[str, Any]:
        return {"limit": whole(number, "limit")}

    def transitive(self) -> dict[str, Any]:
        return {"transitive": True}

    def distinct(self, _: Token) -> dict[str, Any]:
        return {"distinct": True}

    def object(self, *pairs: Criterion | None) -> list[Criterion]:
        return [pair for pair in pairs if pair is not None]

    def group(self, name: Token, *elements: Any) -> Group:
        try:
            join = Join(unquote(name).lower())
        except ValueError:
            raise AqlError(f"Only $and, $or and $msp join criteria, not {unquote(name)[:40]!r}.") from None
        parts: list[Criterion] = []
        for element in elements:
            if element is not None:
                parts += element if isinstance(element, list) else [element]
        if not parts:
            raise AqlError(f"{join} has no criteria.")
        return Group(join, tuple(parts))

    def equality(self, field: Token, value: Token) -> Comparison:
        return Comparison(unquote(field), Operator.EQ, value_of(value))

    def comparison(self, field: Token, *operations: tuple[Operator, Value]) -> Criterion:
        parts = tuple(Comparison(unquote(field), *operation) for operation in operations)
        return parts[0] if len(parts) == 1 else Group(Join.AND, parts)

    def operation(self, operator: Token, *operand: Token) -> tuple[Operator, Value]:
        """Read ``"$ne": value``; ``"$ne": {"$match": value}``, which a client writes, says the opposite of a match."""
        outer = operator_of(operator)
        if len(operand) == 1:
            return outer, value_of(operand[0])
        inner, value = operator_of(operand[0]), value_of(operand[1])
        if (outer, inner) not in NEGATED:
            raise AqlError(f"{outer} compares with a value, not with what {inner} says.")
        return NEGATED[outer, inner], value


def whole(number: Token, name: str) -> int:
    value = value_of(number)
    if not isinstance(value, int) or value < 0:
        raise AqlError(f"{name} must be a whole number from 0 on.")
    return value


# Made with the module: its tables take some 50 ms, for which no request should wait.
PARSER = Lark(
    GRAMMAR, start="query", parser="lalr", lexer="contextual", transformer=Builder(), maybe_placeholders=False
)
