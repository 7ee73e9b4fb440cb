"""How many blocks the transfers of a process hold in memory at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType

BLOCKS_MAX = 16
WAIT_SECONDS = 1.0


class TransferMemory:
    """Lends room for blocks, in turn. Belongs to one event loop.

    A few clients that take or send their bytes slowly must not hold up all others: a block counts no more when it was
    lent ``wait_seconds`` ago, and nobody waits longer than that for one. So ``blocks_max`` bounds the memory of
    transfers that make headway, and a block or two each that of the rest.
    """

    def __init__(
        self,
        blocks_max: Callable[[], int] = lambda: BLOCKS_MAX,
        wait_seconds: Callable[[], float] = lambda: WAIT_SECONDS,
    ) -> None:
        self._blocks_max = blocks_max
        self._wait_seconds = wait_seconds
        self._waiting: deque[asyncio.Future[Loan]] = deque()
        # In the order in which they were made.
        self._loans: dict[Loan, float] = {}

    @property
    def blocks(self) -> int:
        """Blocks that are lent, and count."""
        return len(self._loans)

    def lease(self) -> Lease:
        """Return what keeps account of one transfer; a context manager, which gives back all at its end."""
        return Lease(self)

    def take_now(self) -> Loan | None:
        """Take room for a block, if there is any and nobody waits for it."""
        self._forget_slow()
        return None if self._waiting or len(self._loans) >= self._blocks_max() else self._lend()

    async def take(self) -> Loan:
        """Take room for a block as soon as it is one's turn."""
        if (loan := self.take_now()) is not None:
            return loan
        turn: asyncio.Future[Loan] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait((turn,), timeout=self._wait_seconds())
        except BaseException:
            if turn.done():
                self.give_back(turn.result())
            raise
        finally:
            if not turn.done():
                self._waiting.remove(turn)
        return turn.result() if turn.done() else self._lend()

    def give_back(self, loan: Loan) -> None:
        """Say that a block is in memory no more."""
        self._loans.pop(loan, None)
        self._forget_slow()
        while self._waiting and len(self._loans) < self._blocks_max():
            self._waiting.popleft().set_result(self._lend())

    def _lend(self) -> Loan:
        loan = Loan()
        self._loans[loan] = asyncio.get_running_loop().time()
        return loan

    def _forget_slow(self) -> None:
        before = asyncio.get_running_loop().time() - self._wait_seconds()
        while self._loans and next(iter(self._loans.values())) <= before:
            del self._loans[next(iter(self._loans))]


class Loan:
    """Room for one block."""


class Lease:
    """The blocks of one transfer."""

    def __init__(self, memory: TransferMemory) -> None:
        self._memory = memory
        self._loans: list[Loan] = []

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def blocks(self) -> int:
        """Blocks that the transfer holds."""
        return len(self._loans)

    async def take(self) -> None:
        """See ``TransferMemory.take``."""
        self._loans.append(await self._memory.take())

    def take_now(self) -> bool:
        """Take room for a block, if there is any and nobody waits for it; say whether."""
        if (loan := self._memory.take_now()) is not None:
            self._loans.append(loan)
        return loan is not None

    def give_back(self) -> None:
        """Say that one of the blocks is in memory no more."""
        self._memory.give_back(self._loans.pop(0))

    def close(self) -> None:
        """Give back all. May be called twice, and more may be taken afterwards."""
        while self._loans:
            self.give_back()
