"""Range requests, as pure functions and over the wire."""

from __future__ import annotations

import email.parser
import email.policy
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.web.ranges import ByteRange, Unsatisfiable, Validators, http_date, parse_ranges, range_applies
from tests.repo_node.nodes import RunningCluster, new_path, random_bytes

BLOCK = 1 << 20
SIZE = 3 * BLOCK + 1000


@pytest.fixture(scope="module")
def artifact(one: RunningCluster) -> tuple[str, bytes]:
    """An artifact of several blocks, and its bytes."""
    path, body = new_path(), random_bytes(SIZE)
    assert one.admin.put(path, body).status == 201
    return path, body


RANGES = [
    ("bytes=0-0", 0, 0),
    ("bytes=0-", 0, SIZE - 1),
    (f"bytes={BLOCK - 1}-{BLOCK}", BLOCK - 1, BLOCK),
    (f"bytes={BLOCK}-{2 * BLOCK - 1}", BLOCK, 2 * BLOCK - 1),
    ("bytes=-1", SIZE - 1, SIZE - 1),
    (f"bytes=-{2 * BLOCK}", SIZE - 2 * BLOCK, SIZE - 1),
    (f"bytes=-{10 * SIZE}", 0, SIZE - 1),
    (f"bytes={SIZE - 1}-{SIZE + 5}", SIZE - 1, SIZE - 1),
    ("Bytes= 5-9", 5, 9),
    (f"bytes=7-9,{SIZE}-", 7, 9),
]


@pytest.mark.parametrize(("asked", "first", "last"), RANGES)
def test_one_range_is_206_with_just_its_bytes(
    one: RunningCluster, artifact: tuple[str, bytes], asked: str, first: int, last: int
) -> None:
    path, body = artifact
    answer = one.admin.get(path, Range=asked)
    assert answer.status == 206
    assert answer.body == body[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["Content-Length"] == str(last - first + 1)
    assert answer.headers["X-Checksum-Sha256"] == one.admin.get(path).headers["X-Checksum-Sha256"]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0", f"bytes={10**17}-", f"bytes={SIZE}-,-0"])
def test_a_range_beyond_the_end_is_416(one: RunningCluster, artifact: tuple[str, bytes], asked: str) -> None:
    answer = one.admin.get(artifact[0], Range=asked)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


def test_a_range_of_an_empty_artifact_is_416(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path)
    for asked in ("bytes=0-", "bytes=0-0", "bytes=-5"):
        assert one.admin.get(path, Range=asked).headers["Content-Range"] == "bytes */0"


NO_RANGES = ["bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-3", "lines=1-2", "bytes=1-2-3", "bytes=+1-2"]
TOO_MUCH = ["bytes=" + ",".join(["0-0"] * 17), f"bytes=0-,0-,0-{SIZE}", "bytes=" + "9" * 60 + "-"]


@pytest.mark.parametrize("asked", NO_RANGES + TOO_MUCH)
def test_a_range_that_is_none_is_ignored(one: RunningCluster, artifact: tuple[str, bytes], asked: str) -> None:
    path, body = artifact
    answer = one.admin.get(path, Range=asked)
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("parts", [[(0, 0), (SIZE - 1, SIZE - 1)], [(5, 9), (BLOCK - 2, BLOCK + 2), (0, 2 * BLOCK)]])
def test_several_ranges_come_as_one_multipart_answer(
    one: RunningCluster, artifact: tuple[str, bytes], parts: list[tuple[int, int]]
) -> None:
    path, body = artifact
    asked = "bytes=" + ", ".join(f"{first}-{last}" for first, last in parts)
    answer = one.admin.request("GET", path, headers={"Range": asked, "X-Request-Id": "x" * 64})
    assert answer.status == 206
    kind = answer.headers["Content-Type"]
    assert len(kind.partition("boundary=")[2]) <= 70
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(f"Content-Type: {kind}\r\n".encode() + answer.body)
    found = list(message.iter_parts())
    assert [part["Content-Range"] for part in found] == [f"bytes {first}-{last}/{SIZE}" for first, last in parts]
    assert [part.get_payload(decode=True) for part in found] == [body[first : last + 1] for first, last in parts]


def test_if_range_lets_a_range_through_only_for_the_same_bytes(
    one: RunningCluster, artifact: tuple[str, bytes]
) -> None:
    path, body = artifact
    head = one.admin.head(path).headers
    for validator in (head["ETag"], head["Last-Modified"]):
        assert one.admin.get(path, Range="bytes=1-2", If_Range=validator).body == body[1:3]
    for validator in ('"other"', f"W/{head['ETag']}", "Sat, 01 Jan 2000 00:00:00 GMT", "nonsense", ""):
        answer = one.admin.get(path, Range="bytes=1-2", If_Range=validator)
        assert (answer.status, len(answer.body)) == (200, SIZE), validator
    answer = one.admin.get(path, Range=f"bytes={SIZE}-", If_Range='"other"')
    assert answer.status == 200


def test_every_part_of_a_split_download_is_206(one: RunningCluster, artifact: tuple[str, bytes]) -> None:
    path, body = artifact
    third = SIZE // 3 + 1
    parts = [one.admin.get(path, Range=f"bytes={start}-{start + third - 1}") for start in range(0, SIZE, third)]
    assert [part.status for part in parts] == [206, 206, 206]
    assert b"".join(part.body for part in parts) == body


# ---------------------------------------------------------------------- pure


@given(st.text(alphabet="0123456789-,= bytes\u0663", max_size=30), st.integers(0, 10**6))
def test_whatever_is_asked_ranges_lie_inside(header: str, size: int) -> None:
    try:
        found = parse_ranges("bytes=" + header, size, ranges_max=5)
    except Unsatisfiable:
        return
    assert len(found) <= 5
    for part in found:
        assert 0 <= part.first <= part.last < size


@pytest.mark.parametrize("header", ["bytes=\u0663-5", "bytes=0-\u0665", "bytes=\u00b2-"])
def test_only_ascii_digits_make_a_range(header: str) -> None:
    assert parse_ranges(header, 100, ranges_max=5) == []


@given(st.integers(1, 10**6), st.data())
def test_a_range_written_by_a_client_is_the_range_it_gets(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, 2 * size))
    wanted = ByteRange(first, min(last, size - 1))
    assert parse_ranges(f"bytes={first}-{last}", size, ranges_max=1) == [wanted]


@given(st.text(max_size=60))
def test_no_validator_of_if_range_makes_trouble(text: str) -> None:
    have = Validators('"abc"', datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))
    assert not range_applies({"If-Range": text}, have)


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30)))
def test_a_moment_is_written_as_http_wants_it(at: datetime) -> None:
    assert http_date(at) == format_datetime(at.astimezone(UTC), usegmt=True)
