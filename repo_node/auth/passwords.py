"""Password hashes: argon2id, never on the event loop, never more than a few at once."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's minimum for argon2id: 19 MiB, two passes, one lane.
HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
PASSWORD_BYTES_MAX = 1024
VERIFIERS_MAX = 2


def hash_password(password: str) -> str:
    """Return the argon2id hash of ``password``. Blocks for tens of milliseconds."""
    if not 0 < len(password.encode()) <= PASSWORD_BYTES_MAX:
        raise ValueError(f"a password has 1 to {PASSWORD_BYTES_MAX} bytes")
    return HASHER.hash(password)


def check_password(hashed: str, password: str) -> bool:
    """Say whether ``password`` is the one ``hashed`` was made from. Blocks for tens of milliseconds."""
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        return False
    try:
        return HASHER.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(hashed: str) -> bool:
    """Say whether ``hashed`` was made with other parameters than a new one would be."""
    try:
        return HASHER.check_needs_rehash(hashed)
    except InvalidHashError:
        return False


class PasswordVerifier:
    """Checks passwords in threads of its own: at most ``VERIFIERS_MAX`` at once, the rest wait in line."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(VERIFIERS_MAX, thread_name_prefix="argon2")
        self._nobody = self._executor.submit(hash_password, secrets.token_urlsafe())

    async def verify(self, hashed: str | None, password: str) -> bool:
        """Say whether ``password`` fits; None, for an unknown user, takes as long and is never right."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._verify, hashed, password)

    async def hash(self, password: str) -> str:
        """Return the hash of a new password. Raises ``ValueError``."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, hash_password, password)

    def _verify(self, hashed: str | None, password: str) -> bool:
        if hashed is None:
            check_password(self._nobody.result(), password)
            return False
        return check_password(hashed, password)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
