"""How much memory the jobs of a runner may use together: whoever wants more than is left waits for its turn."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from services.runner.endings import AttemptInterrupted, RunFailed
from services.runner.interrupts import Interrupts

_MIB = 1024 * 1024


class MemoryBudget:
    """Shares `total_bytes` out to jobs by what they may use at most, first come first served."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._free = total_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def share(self, wanted_bytes: int, interrupts: Interrupts) -> AsyncIterator[None]:
        """Hold `wanted_bytes` while the context is open.

        RunFailed where that is more than there is at all, AttemptInterrupted where the wait was cut short.
        """
        if wanted_bytes > self._total:
            raise RunFailed(
                "memory_unavailable",
                f"The job may use {wanted_bytes // _MIB} MiB of memory, and this runner has {self._total // _MIB} MiB "
                "for all its jobs together. Lower “memoryBytes” in the job's limits, or raise "
                "STOWAGE_RUNNER_TOTAL_MEMORY_BYTES.",
            )
        await self._take(wanted_bytes, interrupts)
        try:
            yield
        finally:
            self._give(wanted_bytes)

    async def _take(self, wanted_bytes: int, interrupts: Interrupts) -> None:
        if not self._waiting and wanted_bytes <= self._free:
            self._free -= wanted_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted_bytes, turn))
        interrupted = asyncio.create_task(interrupts.wait())
        try:
            await asyncio.wait((turn, interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise AttemptInterrupted
        except BaseException:
            if turn.done():
                self._give(wanted_bytes)
            else:
                self._waiting.remove((wanted_bytes, turn))
                self._give(0)
            raise
        finally:
            interrupted.cancel()

    def _give(self, amount: int) -> None:
        self._free += amount
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, turn = self._waiting.popleft()
            self._free -= wanted
            turn.set_result(None)
