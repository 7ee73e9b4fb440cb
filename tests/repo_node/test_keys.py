"""The cluster key: a file only its owner can read, with enough of real randomness in it."""

from __future__ import annotations

import secrets
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node import keys
from repo_node.keys import KeyFileError, derive, new_cluster_key, read_cluster_key

GOOD = "8f14e45fceea167a5a36dedd4bea2543d3d9446802a44259755d38e6d163e820"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.key"


@pytest.mark.parametrize("text", [GOOD, GOOD + "\n", f"  {GOOD.upper()}\r\n", GOOD + GOOD[::-1]])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_good_key_is_read(file: Path, text: str, mode: int) -> None:
    assert read_cluster_key(write(file, text, mode)) == bytes.fromhex(text.strip())


def test_s12_new_key_is_good_and_never_the_same(file: Path) -> None:
    made = {new_cluster_key() for _ in range(50)}
    assert len(made) == 50
    for text in made:
        assert read_cluster_key(write(file, text)) == bytes.fromhex(text)


BAD = {
    "empty": ("", "0 bits"),
    "blank": (" \n", "0 bits"),
    "short": (GOOD[:62], "248 bits, at least 256"),
    "odd": (GOOD + "a", "hex digits"),
    "words": ("correct horse battery staple correct horse battery staple", "hex digits"),
    "default": ("changeme", "hex digits"),
    "quoted": (f'"{GOOD}"', "hex digits"),
    "two lines": (f"{GOOD}\n{GOOD}", "one line"),
    "spaced": (" ".join((GOOD[:32], GOOD[32:])), "hex digits"),
    "zeros": ("0" * 64, "pattern"),
    "one byte": ("a5" * 40, "pattern"),
    "deadbeef": ("deadbeef" * 8, "pattern"),
    "keyboard": ("0123456789abcdef" * 4, "pattern"),
    "keyboard, long": ("0123456789abcdeffedcba9876543210" * 4, "pattern"),
    "counting": (bytes(range(32)).hex(), "pattern"),
    "counting down": (bytes(range(255, 191, -1)).hex(), "pattern"),
    "not ascii": ("é" * 64, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_s12_bad_key_is_refused_and_the_message_says_how_to_make_one(file: Path, name: str) -> None:
    text, reason = BAD[name]
    with pytest.raises(KeyFileError, match=reason) as caught:
        read_cluster_key(write(file, text))
    assert str(file) in str(caught.value)
    assert not text.strip() or text.strip() not in str(caught.value), "the message shows the key"
    if name != "not ascii":
        assert "openssl rand -hex 32" in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o644])
def test_s12_key_that_others_can_reach_is_refused(file: Path, mode: int) -> None:
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600") as caught:
        read_cluster_key(write(file, GOOD, mode))
    assert GOOD not in str(caught.value)


def test_missing_key_file_is_refused(file: Path) -> None:
    with pytest.raises(KeyFileError, match="there is no file"):
        read_cluster_key(file)


def test_directory_in_the_place_of_a_key_file_is_refused(file: Path) -> None:
    file.mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_cluster_key(file)


def test_advice_works_when_pasted(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(KeyFileError) as caught:
        read_cluster_key(file)
    command = str(caught.value).partition("make one with: ")[2]
    assert shlex.split(command)
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert len(read_cluster_key(file)) == 32


@given(st.binary(min_size=32, max_size=32))
def test_derived_secret_is_the_same_for_the_same_key_and_purpose_alone(key: bytes) -> None:
    other = bytes([key[0] ^ 1]) + key[1:]
    made = {derive(key, "calls"), derive(key, "cookies"), derive(other, "calls")}
    assert len(made) == 3
    assert derive(key, "calls") in made
    assert all(len(bytes.fromhex(text)) == 32 for text in made)
    assert key.hex() not in "".join(made)


def test_no_random_key_is_taken_for_a_pattern(file: Path) -> None:
    for _ in range(300):
        read_cluster_key(write(file, secrets.token_bytes(keys.KEY_BYTES_MIN).hex()))
