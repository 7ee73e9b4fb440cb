"""Patterns of ``$match``, as Python and as LIKE read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.aql.wildcards import like, matches
from tests.repo_node.aql.evaluator import expression


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*", ""),
        ("**", "a/b"),
        ("a*", "a"),
        ("?", "ü"),
        (r"\*", "*"),
        (r"\?a", "?a"),
        (r"\\", "\\"),
        (r"\a", r"\a"),
        ("a_b%", "a_b%"),
    ],
)
def test_text_is_like_its_pattern(pattern: str, text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"), [("?", ""), ("a", "ab"), ("a*b", "a"), (r"\*", "x"), ("a_b", "axb"), ("", "a")]
)
def test_text_is_not_like_another_pattern(pattern: str, text: str) -> None:
    assert not matches(pattern, text)


@given(st.text("ab*?\\[%_\n", max_size=8), st.text("ab*?\\[%_\n", max_size=8))
def test_patterns_mean_what_regular_expressions_do(pattern: str, text: str) -> None:
    assert matches(pattern, text) == (re.fullmatch(expression(pattern), text, re.DOTALL) is not None)


def test_like_takes_its_own_wildcards_literally() -> None:
    assert like("a_b%*?") == r"a\_b\%%_"
    assert like(r"\*\\") == r"*\\"


def test_s39_a_hostile_pattern_ends() -> None:
    assert not matches("*a" * 2_000, "a" * 1_000 + "b")
