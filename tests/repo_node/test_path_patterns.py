"""Include and exclude patterns: what they let in, the same for Python and for Postgres, whatever a path looks like."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.path_patterns import accepts, check_patterns, matches, split_patterns, sql_regex
from tests.postgres import TestServer
from tests.repo_node.nodes import query

NAMES = st.text("ab.-+", min_size=1, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
PARTS = st.one_of(NAMES, st.sampled_from(["*", "**", "a*", "*b", "*a*b*", "?", "a?b", "a**b"]))
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
LISTS = st.lists(PATTERNS, min_size=1, max_size=3).map(",".join)


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        ("**/*", "a/b", True),
        ("org/acme/**", "org/acme/app/1.jar", True),
        ("org/acme/**", "org/other/1.jar", False),
        ("org/acme/", "org/acme/1.jar", True),
        ("org/**,com/**", "com/x", True),
        (" org/** , com/** ", "net/x", False),
        ("**/*.jar", "x.jar", True),
        ("**/*-SNAPSHOT/**", "a/1-SNAPSHOT/a.jar", True),
        ("**/*-sources.jar*", "a/b/c-sources.jar.sha1", True),
        ("*.jar", "a/x.jar", False),
        ("a/**/b/**/c", "a/x/b/b/y/c", True),
        ("a/**/b/**/c", "a/b/c/d", False),
        ("a.c", "abc", False),
        ("a**c", "a/c", False),
        ("", "a", False),
    ],
)
def test_what_a_list_of_patterns_matches(patterns: str, path: str, expected: bool) -> None:
    assert matches(patterns, path) is expected


def test_an_empty_list_of_includes_keeps_nothing_out_and_an_exclude_wins() -> None:
    assert accepts("", "", "a/b")
    assert accepts("**/*", "", "a/b")
    assert not accepts("a/**", "**/*.exe", "a/b.exe")
    assert not accepts("b/**", "", "a/b")


@given(LISTS, PATHS)
def test_python_and_the_regular_expression_agree(patterns: str, path: str) -> None:
    regex = sql_regex(patterns)
    assert matches(patterns, path) == (regex is None or re.search(regex, path) is not None)


def test_postgres_reads_the_regular_expression_as_python_does(postgres: TestServer) -> None:
    patterns = ["a/**", "**/*.jar", "a?b/*-[x]", "x+y/**/z(1)", "**/é*", "a/**/b/**/c, d.d"]
    paths = [
        "a/b",
        "a",
        "x.jar",
        "q/x.jar",
        "acb/1-[x]",
        "x+y/z(1)",
        "x+y/q/z(1)",
        "n/éa",
        "a/b/c",
        "a/q/b/c",
        "d.d",
        "dxd",
    ]
    with postgres.database(postgres.template()) as dsn:
        for text in patterns:
            rows = query(dsn, "SELECT p, p ~ $1 AS shown FROM unnest($2::text[]) AS p", sql_regex(text), paths)
            assert {row["p"]: row["shown"] for row in rows} == {path: matches(text, path) for path in paths}


def test_a_path_that_looks_like_the_pattern_over_and_over_takes_no_longer() -> None:
    # With backtracking these would take centuries.
    assert not matches("**/" + "*-" * 30 + "x", "/".join(["-" * 255] * 4))
    assert not matches("/".join(["**", "a*"] * 20) + "/x", "/".join(["a"] * 500))


def test_what_no_path_can_have_is_refused() -> None:
    assert check_patterns(" a/** ") == "a/**"
    for bad in ("a\n", "a\\b", "x" * 4097):
        with pytest.raises(ValueError, match="pattern"):
            check_patterns(bad)


def test_a_pattern_has_one_form() -> None:
    assert split_patterns("a/, /b/**/**/c ,,x**y") == ["a/**", "b/**/c", "x*y"]
