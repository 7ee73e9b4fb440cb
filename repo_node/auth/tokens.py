"""Token secrets: recognisable, checked before the database is asked, stored only as a hash."""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

PREFIX = "hf_tok_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARACTERS = 43
CHECK_CHARACTERS = 6


def new_secret() -> str:
    """Return a fresh token: prefix, 43 random base62 characters (256 bits), 6 of checksum."""
    body = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return body + checksum(body)


def checksum(body: str) -> str:
    """Return the base62 CRC-32 of ``body``."""
    value, characters = zlib.crc32(body.encode()), ""
    for _ in range(CHECK_CHARACTERS):
        value, digit = divmod(value, len(ALPHABET))
        characters = ALPHABET[digit] + characters
    return characters


def looks_like_token(text: str) -> bool:
    """Say whether ``text`` can be a token at all; the database is not asked about anything else."""
    return (
        text.startswith(PREFIX)
        and len(text) == len(PREFIX) + RANDOM_CHARACTERS + CHECK_CHARACTERS
        and text.isascii()
        and checksum(text[:-CHECK_CHARACTERS]) == text[-CHECK_CHARACTERS:]
    )


def digest(secret: str) -> bytes:
    """Return what is stored of a token; 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).digest()
