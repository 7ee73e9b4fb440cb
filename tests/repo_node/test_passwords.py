"""What is stored of a password, and how much of one is looked at."""

from __future__ import annotations

import pytest

from repo_node.auth.passwords import PASSWORD_BYTES_MAX, check_password, hash_password


def test_s30_a_password_is_kept_as_argon2id_with_no_less_work_than_is_advised() -> None:
    kind, version, work = hash_password("a password").split("$")[1:4]
    numbers = {name: int(value) for name, _, value in (part.partition("=") for part in work.split(","))}
    assert (kind, version) == ("argon2id", "v=19")
    assert numbers["m"] >= 19 * 1024 and numbers["t"] >= 2 and numbers["p"] >= 1
    assert hash_password("a password") != hash_password("a password"), "each has a salt of its own"


def test_s30_a_longer_password_than_any_is_neither_stored_nor_looked_at() -> None:
    longest = "x" * PASSWORD_BYTES_MAX
    hashed = hash_password(longest)
    assert PASSWORD_BYTES_MAX == 1024 and check_password(hashed, longest)
    assert not check_password(hashed, longest + "x")
    for bad in (longest + "x", "é" * 600, ""):
        with pytest.raises(ValueError, match="1 to 1024 bytes"):
            hash_password(bad)
