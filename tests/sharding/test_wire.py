"""Names and errors as they cross the wire."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharding import wire
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.model import BlobName, Generation, ShardId

SHARD = ShardId(3)
UUID_TEXT = "01890000-0000-7000-8000-0000000000ff"
NAME_TEXT = "ab" * 32 + "." + UUID_TEXT
ODD_CHARACTERS = st.sampled_from([*"0123456789abcdefABCDEFxg.-/\\%*?[]~:\x00\n \u0660\uff41é"])


@given(st.binary(min_size=32, max_size=32), st.uuids())
def test_name_reads_back_as_it_is_written(sha256: bytes, generation: uuid.UUID) -> None:
    name = BlobName(sha256, Generation(generation))
    assert wire.parse_name(str(name)) == name
    assert wire.parse_uuid(str(generation)) == generation


@given(st.text() | st.text(ODD_CHARACTERS, min_size=95, max_size=105))
@example("../" + NAME_TEXT)
@example(NAME_TEXT + "\n")
@example(NAME_TEXT.upper())
@example(NAME_TEXT.replace("-", ""))
@example("")
@example("*")
@example("ab" * 32 + ".{" + UUID_TEXT + "}")
@example("ab" * 32 + "." + UUID_TEXT.replace("0", "\u0660"))
def test_text_is_a_name_only_in_its_one_spelling(text: str) -> None:
    try:
        name = wire.parse_name(text)
    except ValueError:
        return
    assert str(name) == text


@given(st.integers(0, len(NAME_TEXT) - 1), ODD_CHARACTERS)
def test_name_with_one_character_changed_is_another_name_or_none(position: int, character: str) -> None:
    changed = NAME_TEXT[:position] + character + NAME_TEXT[position + 1 :]
    try:
        name = wire.parse_name(changed)
    except ValueError:
        assert character not in "0123456789abcdef" or NAME_TEXT[position] in ".-"
        return
    assert str(name) == changed


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
