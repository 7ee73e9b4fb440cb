"""The cluster key: the one secret every node of a cluster shares, and what is derived from it."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from itertools import pairwise
from pathlib import Path

KEY_BYTES_MIN = 32
DISTINCT_MIN = 16
"""Different bytes, and different steps from byte to byte, in any key: 32 random ones have some 30 of each."""


class KeyFileError(Exception):
    """The key file cannot be used; the message says why and how to make a good one."""


def new_cluster_key() -> str:
    """Return a fresh key as it stands in a key file: 64 hex digits, 256 bits."""
    return secrets.token_hex(KEY_BYTES_MIN)


def read_cluster_key(path: Path) -> bytes:
    """Read the cluster key: 64 or more hex digits on one line, in a file only its owner can read.

    Raises ``KeyFileError``.
    """
    advice = f"make one with: (umask 077; openssl rand -hex 32 > {path})"
    try:
        mode = os.stat(path).st_mode
        text = path.read_text("ascii").strip()
    except FileNotFoundError:
        raise KeyFileError(f"there is no file {path}; {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} cannot be read: {error}") from None
    if mode & 0o077:
        raise KeyFileError(f"{path} is open to others (mode {mode & 0o777:04o}); run: chmod 600 {path}")
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", text):
        raise KeyFileError(f"{path} must hold an even number of hex digits, on one line, and nothing else; {advice}")
    key = bytes.fromhex(text)
    if len(key) < KEY_BYTES_MIN:
        raise KeyFileError(f"{path} holds {len(key) * 8} bits, at least {KEY_BYTES_MIN * 8} are needed; {advice}")
    steps = {(after - before) % 256 for before, after in pairwise(key)}
    if len(set(key)) < DISTINCT_MIN or len(steps) < DISTINCT_MIN:
        raise KeyFileError(f"{path} holds a pattern, not a random key; {advice}")
    return key


def derive(key: bytes, purpose: str) -> str:
    """Return the hex secret that ``key`` gives for one purpose; purposes do not reveal one another."""
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()
