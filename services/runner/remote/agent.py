"""The agent: makes one attempt for a holder of a lease that it reaches over a socket, and ends.

It has no database, no credentials and no tokens but the one with which it takes the attempt, once. When the socket
breaks, the attempt is another's or nobody's: the job is ended.
"""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp

from libs.common.settings import SettingsError
from libs.common.version import VERSION
from services.runner.attempt import Attempt, Workshop
from services.runner.cells import Cells
from services.runner.compatibility import Runtimes, default_node, default_python
from services.runner.endings import AttemptInterrupted, Outcome
from services.runner.events import EVENT_OVERHEAD_BYTES
from services.runner.interrupts import Interrupt, Interrupts
from services.runner.memory import MemoryBudget
from services.runner.remote.link import HolderGone, HolderLink
from services.runner.remote.messages import Assigned, Ended, Phases
from services.runner.remote.remote_holder import RemoteHolder, confined
from services.runner.sandbox.cgroups import ControlGroups
from services.runner.sandbox.ladder import SandboxUnavailable, choose_sandbox, find_bubblewrap
from services.runner.scratch import Scratch, ScratchError

AGENT_VERSION = "Stowage-Version"
"""Header with the version of the agent: it must be the holder's."""

AGENT_NAME = "Stowage-Agent"
"""Header with the name of the machine or pod that the agent is on."""

_PREFIX = "STOWAGE_RUN_ONE_"
_THREADS = 8
_CONNECT_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
_LEFT_SECONDS = 30.0


class NotTaken(Exception):
    """The attempt can't be had; the message says why."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the environment tells the agent: variables that begin with STOWAGE_RUN_ONE_."""

    url: str
    token: str = field(repr=False)
    scratch_dir: Path | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read them, or raise SettingsError naming what is missing."""
        missing = [name for name in ("URL", "TOKEN") if not environment.get(f"{_PREFIX}{name}")]
        if missing:
            names = " and ".join(f"{_PREFIX}{name}" for name in missing)
            raise SettingsError(f"{names} must be set: a runner sets it for the agent that makes an attempt for it")
        scratch = environment.get(f"{_PREFIX}SCRATCH_DIR")
        return cls(environment[f"{_PREFIX}URL"], environment[f"{_PREFIX}TOKEN"], Path(scratch) if scratch else None)


async def run_one(settings: AgentSettings) -> None:
    """Take the attempt, make it, and tell how it ended. NotTaken or HolderGone where that can't be done."""
    interrupts = Interrupts()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, interrupts.set, Interrupt.STOP)
    async with aiohttp.ClientSession() as session, await _connect(session, settings) as connection:
        link = HolderLink(connection, interrupts)
        assigned = await link.assigned()
        async with link.serving(silence_seconds=assigned.silence_seconds):
            holder = RemoteHolder(link, assigned, interrupts)
            link.say(await _make(settings, assigned, holder))
            holder.close()
            if not await link.left(timeout_seconds=_LEFT_SECONDS):
                raise HolderGone("nobody heard how the attempt ended")


async def _connect(session: aiohttp.ClientSession, settings: AgentSettings) -> aiohttp.ClientWebSocketResponse:
    """Take the attempt; the holder may not be reachable at once, where a network policy has yet to let us through."""
    headers = {
        "Authorization": f"Bearer {settings.token}",
        AGENT_VERSION: VERSION,
        AGENT_NAME: socket.gethostname(),
    }
    until = asyncio.get_running_loop().time() + _CONNECT_SECONDS
    while True:
        try:
            return await session.ws_connect(settings.url, headers=headers, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            raise NotTaken(f"{settings.url} answered {error.status}: the attempt is over, or another has it") from None
        except (aiohttp.ClientError, OSError) as error:
            if asyncio.get_running_loop().time() > until:
                raise NotTaken(f"{settings.url} can't be reached: {error}") from None
        await asyncio.sleep(_PAUSE_SECONDS)


async def _make(settings: AgentSettings, assigned: Assigned, holder: RemoteHolder) -> Ended:
    try:
        async with _workshop(settings, assigned) as workshop:
            attempt = Attempt(workshop, holder.order, holder)
            try:
                outcome: Outcome | None = await attempt.execute()
            except AttemptInterrupted:
                outcome = None
    except (SandboxUnavailable, ScratchError, RuntimeError, OSError) as error:
        return _ended(Outcome.failed("not_started", f"Where the run was to be executed: {error}"), None)
    return _ended(outcome, attempt)


@contextlib.asynccontextmanager
async def _workshop(settings: AgentSettings, assigned: Assigned) -> AsyncIterator[Workshop]:
    """All that one attempt needs here."""
    runtimes = await Runtimes.find(default_node(), default_python())
    async with contextlib.AsyncExitStack() as stack:
        scratch = await asyncio.to_thread(Scratch.open, settings.scratch_dir)
        stack.push_async_callback(asyncio.to_thread, scratch.close)
        threads = stack.enter_context(ThreadPoolExecutor(_THREADS, thread_name_prefix="run"))
        sandbox = await choose_sandbox(
            assigned.sandbox, assigned.sandbox_minimum, find_bubblewrap(None), runtimes.program("python"), scratch
        )
        cells = Cells(
            runtimes,
            sandbox,
            scratch,
            await asyncio.to_thread(ControlGroups.claim),
            threads,
            kinds=(),
            warm=0,
            max_event_bytes=assigned.rules.max_result_bytes + EVENT_OVERHEAD_BYTES,
        )
        memory = MemoryBudget(assigned.rules.limits_of(assigned.order.limits).memory_bytes)
        yield Workshop(assigned.rules, cells, memory, runtimes, threads)


def _ended(outcome: Outcome | None, attempt: Attempt | None) -> Ended:
    error = outcome.error if outcome is not None else None
    return Ended(
        state="interrupted" if outcome is None else outcome.state.value,
        result=json.dumps(outcome.result, ensure_ascii=False) if outcome else None,
        kind=error.type if error else None,
        error=error.message if error else None,
        log_tail=error.log_tail if error else [],
        phases=Phases() if attempt is None else Phases.of(attempt.timings),
        confined=None if attempt is None else confined(attempt.confinement),
        received_bytes=0 if attempt is None else attempt.received_bytes,
    )
