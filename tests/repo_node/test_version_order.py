"""The order of versions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repo_node.versions import version_key

ASCENDING = [
    "0.9", "1.0-alpha-1", "1.0-beta", "1.0-m1", "1.0-rc1", "1.0-rc2", "1.0-SNAPSHOT", "1.0", "1.0.1", "1.2", "1.9",
    "1.10-rc1", "1.10", "1.10.1", "2", "10", "20260101",
]  # fmt: skip


def test_versions_ascend() -> None:
    assert sorted(reversed(ASCENDING), key=version_key) == ASCENDING
    keys = [version_key(version) for version in ASCENDING]
    assert len(set(keys)) == len(keys)


def test_what_is_written_otherwise_may_be_one_version() -> None:
    for one, other in (("1", "1.0.0"), ("1.0.Final", "1.0"), ("v1.2", "V1.2"), ("1.0-rc1", "1-RC-1"), ("1_2", "1.2")):
        assert version_key(one) == version_key(other)


@given(
    st.lists(st.integers(0, 10**20), min_size=1, max_size=5), st.lists(st.integers(0, 10**20), min_size=1, max_size=5)
)
def test_numbers_are_ordered_as_numbers(one: list[int], other: list[int]) -> None:
    def trimmed(numbers: list[int]) -> list[int]:
        while numbers and not numbers[-1]:
            numbers = numbers[:-1]
        return numbers

    written = [".".join(map(str, numbers)) for numbers in (one, other)]
    if all(number < 10**18 for number in one + other):
        assert (version_key(written[0]) < version_key(written[1])) is (trimmed(one) < trimmed(other))


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_two_texts_have_an_order(one: str, other: str) -> None:
    assert (version_key(one) < version_key(other)) + (version_key(other) < version_key(one)) <= 1
