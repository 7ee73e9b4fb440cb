"""Ids and errors as they cross the wire."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharding import wire
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.model import ShardId

SHARD = ShardId(3)
UUID_TEXT = "01890000-0000-7000-8000-0000000000ff"
ODD_CHARACTERS = st.sampled_from([*"0123456789abcdefABCDEFxg.-/\\%*?[]~:\x00\n \u0660\uff41é"])


@given(st.uuids())
def test_uuid_reads_back_as_it_is_written(generation: uuid.UUID) -> None:
    assert wire.parse_uuid(str(generation)) == generation


@given(st.text() | st.text(ODD_CHARACTERS, min_size=34, max_size=38))
@example("../" + UUID_TEXT)
@example(UUID_TEXT + "\n")
@example(UUID_TEXT.upper())
@example(UUID_TEXT.replace("-", ""))
@example("")
@example("*")
@example("{" + UUID_TEXT + "}")
@example(UUID_TEXT.replace("0", "\u0660"))
def test_text_is_a_uuid_only_in_its_one_spelling(text: str) -> None:
    try:
        found = wire.parse_uuid(text)
    except ValueError:
        return
    assert str(found) == text


@pytest.mark.parametrize("kind", [ShardUnavailable, ShardFull, ShardRefused, ReplicaMissing, ReplicaCorrupt])
def test_error_crosses_the_wire_as_itself(kind: type[ShardError]) -> None:
    error = kind(ShardId(9), "what happened")
    refusal = wire.refusal_of(error)
    arrived = wire.parse_error(SHARD, refusal.body(), refusal.status)
    assert type(arrived) is kind
    assert str(arrived) == "shard 3: what happened"
    assert type(wire.parse_error(SHARD, refusal.body())) is kind


def test_statuses_tell_a_missing_replica_from_a_full_shard() -> None:
    statuses = {wire.refusal_of(kind(SHARD, "")).status for kind in (ReplicaMissing, ShardFull, ReplicaCorrupt)}
    assert statuses == {404, 507, 422}


@given(
    st.binary(max_size=50) | st.sampled_from([b"404: Not Found", b"null", b"[" * 20_000, b'{"error": ["x"]}', b"{}"])
)
def test_answer_that_is_not_understood_says_nothing_about_files(body: bytes) -> None:
    assert type(wire.parse_error(SHARD, body, 404)) is ShardUnavailable
    assert type(wire.parse_error(SHARD, body)) is ShardUnavailable


def test_missing_is_believed_only_with_its_status() -> None:
    body = wire.refusal_of(ReplicaMissing(SHARD, "not there")).body()
    assert type(wire.parse_error(SHARD, body, 503)) is ShardUnavailable


def test_message_is_cut_to_a_bound() -> None:
    body = json.dumps({"error": "shard_full", "message": "x" * 10_000}).encode()
    assert len(str(wire.parse_error(SHARD, body, 507))) < 1100
    assert len(wire.refusal_of(ShardFull(SHARD, "x" * 10_000)).body()) < 1100
