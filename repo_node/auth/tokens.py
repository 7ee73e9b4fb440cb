"""Token secrets: recognisable, checked before the database is asked, stored only as a hash.

Access tokens are also written as Artifactory's clients read theirs: a JSON Web Token whose third part is the secret.
Its other parts tell the client whose it is and when it ends; nobody signs them, and no node looks at them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import string
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARACTERS = 43
CHECK_CHARACTERS = 6

WRAPPED_CHARACTERS_MAX = 8 << 10
WRAPPED_HEAD = {"alg": "holdfast", "typ": "JWT"}


class Kind(StrEnum):
    """What a secret is for, by how it begins."""

    ACCESS = "hf_tok_"
    REFRESH = "hf_ref_"


def new_secret(kind: Kind = Kind.ACCESS) -> str:
    """Return a fresh token: prefix, 43 random base62 characters (256 bits), 6 of checksum."""
    body = kind + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return body + checksum(body)


def checksum(body: str) -> str:
    """Return the base62 CRC-32 of ``body``."""
    value, characters = zlib.crc32(body.encode()), ""
    for _ in range(CHECK_CHARACTERS):
        value, digit = divmod(value, len(ALPHABET))
        characters = ALPHABET[digit] + characters
    return characters


def looks_like_token(text: str, kind: Kind = Kind.ACCESS) -> bool:
    """Say whether ``text`` can be a secret of this kind at all; the database is not asked about anything else."""
    return (
        text.startswith(kind)
        and len(text) == len(kind) + RANDOM_CHARACTERS + CHECK_CHARACTERS
        and text.isascii()
        and checksum(text[:-CHECK_CHARACTERS]) == text[-CHECK_CHARACTERS:]
    )


def digest(secret: str) -> bytes:
    """Return what is stored of a token; 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def wrapped(secret: str, claims: Mapping[str, Any]) -> str:
    """Return a secret as a JSON Web Token that tells ``claims``, which are for its holder alone."""
    return f"{encoded(WRAPPED_HEAD)}.{encoded(claims)}.{secret}"


def encoded(part: Mapping[str, Any]) -> str:
    text = json.dumps(part, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def secret_in(text: str) -> str | None:
    """Return the secret of an access token, bare or as a JSON Web Token; None where there is none."""
    if len(text) <= WRAPPED_CHARACTERS_MAX and text.count(".") == 2:
        text = text.rpartition(".")[2]
    return text if looks_like_token(text) else None
