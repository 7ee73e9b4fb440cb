"""Patterns of searches: what they match, and that the spans they are searched in leave nothing out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.patterns import folder_span, gavc, like, literal_start, name_start, regex, span

NAMES = st.text("ab.-+_%\\é", min_size=1, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
PATTERN_PARTS = st.one_of(NAMES, st.sampled_from(["*", "**", "a*", "*b", "?", "a?b"]))
PATTERNS = st.lists(PATTERN_PARTS, min_size=1, max_size=4).map("/".join)


def matches(pattern: str, path: str) -> bool:
    return re.fullmatch(regex(pattern), path) is not None


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a/*.jar", "a/x.jar", True),
        ("a/*.jar", "a/b/x.jar", False),
        ("a/**/x", "a/x", True),
        ("a/**/x", "a/b/c/x", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**/x.jar", "x.jar", True),
        ("**", "a/b/c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("*.[x]", "a.[x]", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@given(PATHS)
def test_a_path_matches_itself_alone(path: str) -> None:
    assert matches(path, path)
    assert not matches(path, f"{path}x") and not matches(path, f"x{path}")


@given(PATTERNS, PATHS)
def test_the_span_of_folders_leaves_nothing_out(pattern: str, path: str) -> None:
    if matches(pattern, path):
        folder = path.rpartition("/")[0].encode()
        found = folder_span(pattern)
        assert found.low.encode() <= folder < found.high.encode()


@given(st.text("ab*?%_\\é", max_size=8), st.text("abc%_\\é", max_size=8))
def test_like_matches_what_the_wildcards_do(pattern: str, name: str) -> None:
    as_regex = "".join({"*": ".*", "?": "."}.get(c) or re.escape(c) for c in pattern)
    like_regex = re.sub(
        r"\\(.)|(%)|(_)|(.)",
        lambda m: re.escape(m[1] or m[4]) if m[1] or m[4] else ".*" if m[2] else ".",
        like(pattern),
    )
    assert bool(re.fullmatch(like_regex, name)) is bool(re.fullmatch(as_regex, name))
    if re.fullmatch(as_regex, name):
        found = span(literal_start(pattern))
        assert found.low <= name < found.high


@pytest.mark.parametrize(
    ("asked", "path", "expected"),
    [
        (("org.acme", "lib", "1.0", None), "org/acme/lib/1.0/lib-1.0.jar", True),
        (("org.acme", "lib", None, None), "org/acme/lib/1.0/lib-1.0.pom", True),
        (("org.acme", None, None, None), "org/acme/lib/1.0/lib-1.0.pom", True),
        (("org*", None, None, None), "org/acme/lib/1.0/lib-1.0.pom", True),
        ((None, "lib", None, None), "org/acme/lib/1.0/lib-1.0.pom", True),
        ((None, "li*", "1.*", None), "org/acme/lib/1.0/lib-1.0.pom", True),
        (("org.acme", "lib", "1.0", "sources"), "org/acme/lib/1.0/lib-1.0-sources.jar", True),
        (("org.acme", "lib", "1.0", "sources"), "org/acme/lib/1.0/lib-1.0.jar", False),
        (("org.acme", "lib", "1.0", None), "org/acme/lib/1.1/lib-1.1.jar", False),
        (("org.acme", "lib", "1.0", None), "org/acme/sub/lib/1.0/lib-1.0.jar", False),
        (("org.acme", "lib", "1.0-SNAPSHOT", None), "org/acme/lib/1.0-SNAPSHOT/lib-1.0-20260101.010101-1.jar", True),
        (("org.acme", "lib", "1.0", None), "org/acme/lib/1.0/maven-metadata.xml", False),
    ],
)
def test_maven_coordinates(asked: tuple[str | None, ...], path: str, expected: bool) -> None:
    expression, wide = gavc(*asked)
    assert (re.fullmatch(expression, path) is not None) is expected
    if expected:
        folders = folder_span(wide)
        assert folders.low <= path.rpartition("/")[0] < folders.high


@given(pattern=PATTERNS, path=PATHS)
def test_what_matches_has_a_name_that_begins_as_the_pattern_says(pattern: str, path: str) -> None:
    if matches(pattern, path):
        assert path.rpartition("/")[2].startswith(name_start(pattern))


@pytest.mark.parametrize(
    ("pattern", "start"), [("**/x-1.*", "x-1."), ("a/b", "b"), ("a/*", ""), ("a/**", ""), ("x**/y", ""), ("a**b", "")]
)
def test_the_start_of_names(pattern: str, start: str) -> None:
    assert name_start(pattern) == start
