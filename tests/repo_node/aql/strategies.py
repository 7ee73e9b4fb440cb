"""Random queries: any that can be written, and those that ask something of the items in the tests' database."""

from __future__ import annotations

from hypothesis import strategies as st

from repo_node.aql.tree import Comparison, Criterion, Group, Join, Operator, Order, Query

ORDERED = (Operator.EQ, Operator.NE, Operator.GT, Operator.GTE, Operator.LT, Operator.LTE)
ALIKE = (Operator.MATCH, Operator.NMATCH)
SAME = (Operator.EQ, Operator.NE)

# ------------------------------------------------------------------ any query

TEXTS = st.text(max_size=12)
VALUES = st.one_of(
    TEXTS,
    st.integers(-(10**17), 10**17),
    st.integers(-(10**6), 10**6).map(lambda number: number / 64),
    st.none(),
)
ANY_COMPARISON = st.builds(Comparison, TEXTS, st.sampled_from(Operator), VALUES)


def groups(parts: st.SearchStrategy[Criterion], joins: tuple[Join, ...] = tuple(Join)) -> st.SearchStrategy[Group]:
    some = st.lists(parts, min_size=1, max_size=4).map(tuple)
    return st.builds(Group, st.sampled_from(joins), some)


ANY_CRITERION: st.SearchStrategy[Criterion] = st.recursive(ANY_COMPARISON, groups, max_leaves=8)
ANY_QUERY = st.builds(
    Query,
    st.lists(ANY_CRITERION, max_size=4).map(tuple),
    st.lists(TEXTS, max_size=4).map(tuple),
    st.none() | st.builds(Order, st.lists(TEXTS, min_size=1, max_size=3).map(tuple), st.booleans()),
    st.integers(0, 10**6),
    st.none() | st.integers(0, 10**6),
    st.booleans(),
)

# ------------------------------------------------------------------ queries over the tests' items

REPOSITORIES = ("a-repo", "b-repo", "c%repo")
FOLDERS = ("", "a", "a/b", "a/b/c", "ab", "b_c", "b%c/d")
NAMES = ("a", "ab", "b", "a_b", "a%b", "ü", "x*y", "a-1.0.jar")
USERS = ("ann", "bob")
KEYS = ("os", "license", "q%")
TEXT_VALUES = ("linux", "win", "GPL-3", "LGPL-2", "1", "10", "x*y", "ü")
PATTERNS = (
    "*",
    "a*",
    "*b",
    "?",
    "a?b",
    "*%*",
    "*_*",
    "a/*",
    ".",
    "?*",
    "**",
    r"x\*y",
    "*.jar",
    "",
    "*GPL*",
    "L*",
    ".*",
)
SIZES = (0, 1, 2, 10)
TIMES = tuple(f"2026-01-{day:02}T00:00:00.{milliseconds:03}Z" for day in (1, 5, 9) for milliseconds in (0, 1))
PERIODS = ("0d", "1d", "4d", "1w", "5000minutes")


def compared(
    fields: tuple[str, ...], operators: tuple[Operator, ...], values: tuple[object, ...]
) -> st.SearchStrategy[Comparison]:
    return st.builds(Comparison, st.sampled_from(fields), st.sampled_from(operators), st.sampled_from(values))  # type: ignore[arg-type]


def text_field(name: str, values: tuple[str, ...]) -> st.SearchStrategy[Comparison]:
    exact = compared((name,), ORDERED, (*values, "", ".", "zz"))
    return exact | compared((name,), ALIKE, PATTERNS) | compared((name,), SAME, (None,))


PROPERTY_FIELDS = (*(f"@{key}" for key in (*KEYS, "none", "*")), "property.value")
ONE_PROPERTY = st.one_of(
    compared(PROPERTY_FIELDS, ORDERED, (*TEXT_VALUES, 1)),
    compared(PROPERTY_FIELDS, ALIKE, PATTERNS),
    compared(("property.key",), ORDERED, KEYS),
    compared(("property.key",), ALIKE, PATTERNS),
)
PROPERTY = st.one_of(
    ONE_PROPERTY, compared((*PROPERTY_FIELDS, "property.key"), SAME, (None,)), compared(PROPERTY_FIELDS, SAME, ("*",))
)
SHA1S = tuple(bytes([number] * 20).hex() for number in range(4))
COMPARISON = st.one_of(
    text_field("repo", (*REPOSITORIES, "virtual")),
    text_field("path", FOLDERS),
    text_field("name", NAMES),
    text_field("created_by", USERS),
    compared(("type",), SAME, ("file", "folder", "any", "none")),
    compared(("size", "depth", "stat.downloads", "stat.remote_downloads"), ORDERED, (*SIZES, "2", -1)),
    compared(("stat.downloads", "stat.downloaded", "stat.remote_downloads", "stat.remote_path"), SAME, (None,)),
    compared(("created", "stat.downloaded"), ORDERED, TIMES),
    compared(("created", "stat.downloaded"), (Operator.BEFORE, Operator.LAST), PERIODS),
    compared(("actual_sha1",), SAME, (*SHA1S, SHA1S[1].upper()[:2], "none", None)),
    compared(("actual_sha1",), ALIKE, ("0*", "*1", "??0*")),
    PROPERTY,
)
CRITERION: st.SearchStrategy[Criterion] = st.recursive(
    COMPARISON | groups(ONE_PROPERTY, (Join.MSP,)),
    lambda parts: groups(parts, (Join.AND, Join.OR)),
    max_leaves=6,
)
QUERY = st.builds(Query, st.lists(CRITERION, max_size=3).map(tuple))
