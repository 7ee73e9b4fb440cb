"""One archive, unpacked by a process of its own: what it tells is checked, and it ends with the block."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from repo_node.errors import BodyTooLarge, Overloaded, RequestError
from repo_node.unpacking.frames import (
    DATA_BYTES_MAX,
    FACTS_BYTES_MAX,
    HEAD,
    Kind,
    Limits,
    Member,
    Reason,
    member_from,
    pack,
    refused_from,
)

END_SECONDS_MAX = 2.0
"""How long a killed process may take to end. One that hangs in a dead disk is not waited for."""


class Unpacking:
    """First ``members``, then ``data`` of each, in their order. Made by ``unpacking``."""

    def __init__(self, process: Process, limits: Limits) -> None:
        self._process = process
        self._limits = limits
        self._deadline = asyncio.get_running_loop().time() + limits.seconds_max

    async def members(self) -> Sequence[Member]:
        """Return the files in the archive, when all of it was read and found right.

        Raises ``RequestError`` for an archive that is damaged or holds what it may not, ``BodyTooLarge``.
        """
        found: list[Member] = []
        while (told := await self._told(Kind.MEMBER, Kind.CHECKED))[0] != Kind.CHECKED:
            found.append(read_member(told[1]))
            if len(found) > self._limits.entries_max:
                raise nonsense()
        return found

    async def data(self, member: Member) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the next member. Raises ``RequestError``."""
        if read_member((await self._told(Kind.MEMBER))[1]) != member:
            raise RequestError("The archive is another one than it was a moment ago.")
        left = member.size
        while left > 0:
            piece = (await self._told(Kind.DATA))[1]
            if not 0 < len(piece) <= left:
                raise nonsense()
            left -= len(piece)
            yield piece

    async def _told(self, *expected: Kind) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout_at(self._deadline):
                kind, body = await self._frame()
        except asyncio.IncompleteReadError:
            raise await self._out_of_means() from None
        except TimeoutError:
            raise self._too_slow() from None
        if kind == Kind.REFUSED:
            raise answer_to(body)
        if kind not in expected:
            raise nonsense()
        return kind, body

    async def ended(self) -> None:
        """Return when the process has ended, or hangs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS_MAX):
                await self._process.wait()

    async def _frame(self) -> tuple[int, bytes]:
        assert self._process.stdout is not None, "it was asked for"
        number, length = HEAD.unpack(await self._process.stdout.readexactly(HEAD.size))
        if length > max(DATA_BYTES_MAX, FACTS_BYTES_MAX):
            raise nonsense()
        return number, await self._process.stdout.readexactly(length)

    async def _out_of_means(self) -> RequestError:
        await self.ended()
        if self._process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return self._too_slow()
        return BodyTooLarge("The archive is refused. Reading it took more than it may, or failed.")

    def _too_slow(self) -> RequestError:
        return BodyTooLarge(
            f"Unpacking takes longer than {self._limits.seconds_max} seconds (setting explode_seconds_max)."
        )


def nonsense() -> RequestError:
    """Return what is to be said of a process that does not do as agreed: its archive may have taken it over."""
    return RequestError("The archive is refused. What it was read as makes no sense.")


def read_member(body: bytes) -> Member:
    try:
        return member_from(body)
    except ValueError:
        raise nonsense() from None


def answer_to(body: bytes) -> RequestError:
    try:
        refused = refused_from(body)
    except ValueError:
        return nonsense()
    match refused.reason:
        case Reason.BAD:
            return RequestError(f"The archive is refused. {refused.message}")
        case Reason.TOO_LARGE:
            return BodyTooLarge(f"The archive is refused. {refused.message}")
        case Reason.UNREADABLE:
            return Overloaded(f"The archive cannot be read back from this node's disk; retry. {refused.message}")


@asynccontextmanager
async def unpacking(kind: str, archive: int, limits: Limits) -> AsyncIterator[Unpacking]:
    """Have the archive in an open file unpacked; ``kind`` is zip, tar or tar.gz.

    The process has no environment, and of this one's files the archive alone. Raises ``Overloaded`` when there is none.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "repo_node.unpacking", str(os.getpid()), kind, pack(limits).decode()),
            stdin=archive,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
            cwd="/",
            limit=DATA_BYTES_MAX,
        )
    except OSError as error:
        raise Overloaded(f"This node cannot start a process to unpack the archive; retry. {error.strerror}") from error
    archive_in_work = Unpacking(process, limits)
    try:
        yield archive_in_work
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await archive_in_work.ended()
