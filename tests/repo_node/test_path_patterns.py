"""Patterns of permission targets: what they match, reach and cover, in Python and in Postgres alike."""

from __future__ import annotations

import re

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.auth.path_patterns import AntPattern, PathPatterns, both, expression_of, reach_of
from repo_node.auth.permissions import Permission, Principal
from repo_node.auth.rights import Grant, compile_rights
from repo_node.paths import ArtifactPath

NAMES = st.sampled_from(["a", "b", "ab", "a.b", "ba"])
PATHS = st.lists(NAMES, max_size=4).map("/".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "*b", "?", "a?b", "a.b"]), min_size=1, max_size=4).map(
    "/".join
)
LISTS = st.lists(PATTERNS, min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("**", ["", "a", "a/b/c"], []),
        ("a/**", ["a", "a/b", "a/b/c"], ["", "ab", "ab/c", "b/a"]),
        ("a/", ["a", "a/b"], ["ab"]),
        ("/a/b", ["a/b"], ["a", "a/b/c", "A/b"]),
        ("*", ["a", "b.jar"], ["", "a/b"]),
        ("**/*.jar", ["x.jar", "a/b/x.jar"], ["a.jar/b", "x.war"]),
        ("com/*/app/**", ["com/x/app", "com/x/app/1"], ["com/app/1", "com/x/y/app/1"]),
        ("a/**/z", ["a/z", "a/b/c/z"], ["a/b/c", "z"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("[ab]", ["[ab]"], ["a", "b"]),
    ],
)
def test_a_pattern_matches_as_ant_reads_it(pattern: str, matched: list[str], others: list[str]) -> None:
    read = AntPattern(pattern)
    assert [path for path in [*matched, *others] if read.matches(path)] == matched
    expression = expression_of([PathPatterns.of([pattern], [])]) or ""
    assert [path for path in [*matched, *others] if re.search(expression, path)] == matched


@given(includes=LISTS, excludes=st.lists(PATTERNS, max_size=2), path=PATHS)
def test_the_expression_says_the_same_as_the_patterns(includes: list[str], excludes: list[str], path: str) -> None:
    patterns = PathPatterns.of(includes, excludes)
    expression = expression_of([patterns])
    assert patterns.allow(path) is (expression is None or re.search(expression, path) is not None)


@given(includes=LISTS, excludes=st.lists(PATTERNS, max_size=2), path=PATHS)
def test_no_folder_is_passed_over_in_which_something_may_fit(
    includes: list[str], excludes: list[str], path: str
) -> None:
    patterns = PathPatterns.of(includes, excludes)
    expression = reach_of([patterns])
    assert not patterns.reach(path) or expression is None or re.search(expression, path)
    if expression is not None and not excludes:
        assert patterns.reach(path) is (re.search(expression, path) is not None)


@given(includes=LISTS, path=PATHS)
def test_what_fits_lies_at_or_below_a_root(includes: list[str], path: str) -> None:
    patterns = PathPatterns.of(includes, [])
    if patterns.allow(path):
        assert any(f"{path}/".startswith(f"{root}/") for root in patterns.roots if root) or "" in patterns.roots


@given(includes=LISTS, excludes=st.lists(PATTERNS, max_size=2), path=PATHS, below=PATHS)
def test_what_is_allowed_below_is_reached_and_what_is_covered_is_allowed(
    includes: list[str], excludes: list[str], path: str, below: str
) -> None:
    patterns, whole = PathPatterns.of(includes, excludes), "/".join(filter(None, (path, below)))
    if patterns.allow(whole):
        assert patterns.reach(path)
    if patterns.cover(path):
        assert patterns.allow(path) and patterns.allow(whole)


async def test_postgres_reads_the_expressions_as_python_does(dsn: str) -> None:
    paths = ["", "a", "ab", "a/b", "a/b/c", "a/x.jar", "b/a/x.jar", "[ab]", "a.b", "é/ü.jar"]
    cases = [
        PathPatterns.of(includes, excludes)
        for includes in (["**"], ["a/**"], ["**/*.jar", "a?"], ["[ab]"], ["*"], ["a/**/c"], ["é/*"])
        for excludes in ([], ["a/b/**"], ["**/*.jar"], ["**"])
    ]
    connection = await asyncpg.connect(dsn)
    try:
        for one in cases:
            expression = expression_of([one])
            found = await connection.fetchval(
                "SELECT array_agg(p ORDER BY n) FROM unnest($1::text[]) WITH ORDINALITY u (p, n)"
                " WHERE $2::text IS NULL OR p ~ $2",
                paths,
                expression,
            )
            assert (found or []) == [path for path in paths if one.allow(path)], expression
        joined = both(expression_of([PathPatterns.of(["a/**"], [])]), expression_of([PathPatterns.of(["**/c"], [])]))
        assert await connection.fetchval(
            "SELECT array_agg(p) FROM unnest($1::text[]) p WHERE p ~ $2", paths, joined
        ) == ["a/b/c"]
    finally:
        await connection.close()


def test_s39_a_long_pattern_takes_no_long_time() -> None:
    pattern = PathPatterns.of(["/".join(["**", "*a*a*a*a*b"] * 10)], [])
    assert not pattern.allow("/".join(["a" * 50] * 20))


def test_grants_add_up() -> None:
    read, write = frozenset({Permission.READ}), frozenset({Permission.WRITE})
    rights = compile_rights(
        [
            Grant(("one",), PathPatterns.of(["a/**"], ["a/secret/**"]), read),
            Grant(("ANY",), PathPatterns.of(["public/**"], []), read),
            Grant(("two", "ANY REMOTE"), PathPatterns.of([], []), write),
        ]
    )
    who = Principal("x", is_admin=False, rights=rights)

    def reads(repository: str, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return who.may(Permission.READ, ArtifactPath(repository, folder, name))

    assert reads("one", "a/x") and not reads("one", "a/secret/x") and reads("one", "public/x")
    assert reads("three", "public/x") and not reads("three", "a/x") and not reads("two", "a/x")
    assert who.may(Permission.WRITE, ArtifactPath("two", "", "x"))
    assert not who.may(Permission.WRITE, ArtifactPath("remote", "", "x"))
    assert who.may(Permission.READ) and not who.may(Permission.DELETE) and not who.may(Permission.ADMIN)
    scope = who.readable().rows({1: "one", 2: "two", 3: "three"})
    assert scope.whole == () and scope.partial == (1, 2, 3)
    assert compile_rights([Grant(("ANY REMOTE",), PathPatterns.of([], []), read)]) == {}


def test_an_administrator_reads_everything_and_a_narrowed_token_what_its_scopes_say() -> None:
    assert Principal("admin", is_admin=True).readable().everything
    assert not Principal("admin", is_admin=True, scopes=frozenset({"write"})).readable().reaches("one")
    rights = compile_rights([Grant(("one",), PathPatterns.of([], []), frozenset({Permission.READ, Permission.WRITE}))])
    narrowed = Principal("x", is_admin=False, scopes=frozenset({"read"}), rights=rights)
    at = ArtifactPath("one", "", "x")
    assert narrowed.may(Permission.READ, at) and not narrowed.may(Permission.WRITE, at)
    assert narrowed.readable().rows({1: "one", 2: "two"}).whole == (1,)
