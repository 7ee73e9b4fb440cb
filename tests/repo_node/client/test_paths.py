from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.client.paths import PathError, RemotePath, check_name, parse_remote
from repo_node.paths import BadPath, check_segment, parse_target

NAMES = st.text(st.characters(), min_size=1, max_size=300)


def is_taken(name: str) -> bool:
    try:
        check_name(name)
    except PathError:
        return False
    return True


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=80).filter(is_taken), min_size=1, max_size=4)
)
def test_what_is_sent_is_read_by_the_server_as_it_was_meant(names: list[str]) -> None:
    path = RemotePath("generic-local")
    for name in names:
        path = path / name
    target = parse_target(path.url_path)
    assert target.segments == ("generic-local", *names)
    assert (target.is_folder, target.properties) == (False, {})


@given(NAMES)
def test_a_name_is_taken_here_exactly_when_the_server_takes_it(name: str) -> None:
    def is_taken(check: object) -> bool:
        try:
            check(name)  # type: ignore[operator]
        except (PathError, BadPath):
            return False
        return True

    assert is_taken(check_name) == is_taken(check_segment)


@pytest.mark.parametrize("text", ["r", "r/", "/r", "/r/"])
def test_a_repository_is_parsed(text: str) -> None:
    assert parse_remote(text) == RemotePath("r")


def test_a_path_is_parsed_into_names() -> None:
    path = parse_remote("r/some dir/a%20b.txt")
    assert path == RemotePath("r", ("some dir", "a%20b.txt"))
    assert path.url_path == "/r/some%20dir/a%2520b.txt"
    assert (str(path), path.name) == ("r/some dir/a%20b.txt", "a%20b.txt")


@pytest.mark.parametrize(
    "text", ["", "/", "//", "r//a", "r/./a", "r/../a", "r/a\\b", "r/\x00", "r/\udcff", "r/e\u0301"]
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(PathError):
        parse_remote(text)
