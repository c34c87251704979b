"""Standing over a job from the moment when its handler may be called: its time, its cancel, its end."""

import asyncio
import signal
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from libs.common.models import RunState
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.events import Failed, Returned, Verdict
from services.runner.holder import Log
from services.runner.interrupts import Interrupt, Interrupts
from services.runner.masking import Mask, MaskedStream
from services.runner.metering import Meter, memory_exceeded
from services.runner.process import MAX_LINE_BYTES, JobProcess
from services.runner.values import clean_text

_TAIL_LINES = 20
_TAIL_CHARACTERS = 500
_LEAVE_SECONDS = 4.0  # longer than a harness waits for its outputs to be read
_UNSETTLED = 13  # what Node.js exits with when nothing is left to do and a promise never settled
_HINTS = {
    **dict.fromkeys(
        (signal.SIGABRT, signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL),
        " That often means that it wanted more memory than its limit.",
    ),
    signal.SIGKILL: " That often means that the machine had no memory left.",
    signal.SIGXFSZ: " It wrote to a file that is larger than its limit.",
    signal.SIGXCPU: " It used more CPU time than its limit, “cpuSeconds”.",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a job may take in all, to end when asked to, and after SIGTERM."""

    timeout_seconds: float
    abort_seconds: float
    kill_seconds: float


class Voice:
    """What a job says, as it comes and without secrets: an `EventSink`, and the listener to its outputs."""

    def __init__(self, log: Log, mask: Mask) -> None:
        self._log = log
        self._mask = mask
        self._outputs = {source: MaskedStream(mask) for source in ("stdout", "stderr")}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.has_started = asyncio.Event()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.verdict: Verdict | None = None
        self.has_ended = asyncio.Event()
        self.latest_progress: tuple[float | None, str | None] | None = None
        self.progressed = asyncio.Event()

    def output(self, source: str, line: bytes) -> None:
        """A line of standard output or error, or a piece of one."""
        text = line.decode("utf-8", "replace").rstrip("\r")
        self._write(source, "info", self._outputs[source].piece(text, goes_on=len(line) >= MAX_LINE_BYTES), None)

    def ready(self) -> None:
        return

    def started(self) -> None:
        if self.started_at is None:
            self.started_at = time.monotonic()
            self.has_started.set()

    def log(self, level: str, message: str, fields: dict[str, Any] | None) -> None:
        self._write("logger", level, self._mask.text(message), self._mask.value(fields))

    def progress(self, fraction: float | None, message: str | None) -> None:
        self.latest_progress = (fraction, self._mask.value(message))
        self.progressed.set()

    def ended(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self.verdict = self._masked(verdict)
            self.ended_at = time.monotonic()
            self.has_ended.set()

    def _masked(self, verdict: Verdict) -> Verdict:
        match verdict:
            case Returned(value):
                return Returned(self._mask.value(value))
            case Failed(name, message):
                return Failed(self._mask.text(name), self._mask.text(message))

    @property
    def tail(self) -> list[str]:
        """The last lines."""
        return list(self._tail)

    def _write(self, source: str, level: str, text: str, fields: dict[str, Any] | None) -> None:
        self._tail.extend(clean_text(line, _TAIL_CHARACTERS) for line in text.split("\n")[-_TAIL_LINES:])
        self._log.write(source, text, level=level, fields=fields)


class _End(Enum):
    BY_ITSELF = auto()
    TIMED_OUT = auto()
    CANCELLED = auto()


async def supervise(
    process: JobProcess,
    voice: Voice,
    interrupts: Interrupts,
    meter: Meter,
    patience: Patience,
    start: dict[str, Any],
) -> Outcome:
    """Let the job begin, and wait for its end. Closes the process.

    RunFailed with what went wrong, AttemptInterrupted when this attempt is of no more use.
    """
    process.send(start)
    end = await _wait(process, voice, interrupts, meter, patience)
    if interrupts.lost:
        await process.close()
        raise AttemptInterrupted
    code = await process.close()
    if end is _End.CANCELLED and interrupts.reason is not Interrupt.CANCEL:
        raise AttemptInterrupted
    if process.ran_out_of_memory and voice.verdict is None:
        end = memory_exceeded(meter.limits)
    if isinstance(end, RunFailed):
        end.log_tail = voice.tail
        raise end
    return _judge(end, code, voice, patience)


async def _wait(
    process: JobProcess, voice: Voice, interrupts: Interrupts, meter: Meter, patience: Patience
) -> _End | RunFailed:
    """Wait for the job's end, or bring it about; RunFailed where it took more than it may."""
    excess = asyncio.create_task(meter.excess())
    waits = {
        "process": asyncio.create_task(process.ended()),
        "verdict": asyncio.create_task(voice.has_ended.wait()),
        "interrupt": asyncio.create_task(interrupts.wait()),
        "excess": excess,
    }
    try:
        await asyncio.wait(waits.values(), timeout=patience.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if process.has_ended or voice.verdict is not None:
            # It has said how it ended; what it printed before may still be on its way.
            if not await process.ended(_LEAVE_SECONDS):
                process.kill()
            return _End.BY_ITSELF
        if excess.done():
            process.kill()
            return excess.result()
        if interrupts.reason is None:
            await _bring_down(process, interrupts, patience, "the run's time is over")
            return _End.TIMED_OUT
        await _bring_down(process, interrupts, patience, "the run was cancelled")
        return _End.CANCELLED
    finally:
        for task in waits.values():
            task.cancel()
        await asyncio.gather(*waits.values(), return_exceptions=True)


async def _bring_down(process: JobProcess, interrupts: Interrupts, patience: Patience, reason: str) -> None:
    """Ask the job to end, then its process group, then don't ask."""
    if not interrupts.lost:
        process.send({"abort": reason})
        if await process.ended(patience.abort_seconds):
            return
        process.terminate()
        if await process.ended(patience.kill_seconds):
            return
    process.kill()


def _judge(end: _End, code: int, voice: Voice, patience: Patience) -> Outcome:
    if end is _End.CANCELLED:
        return Outcome.failed("cancelled", "The run was cancelled.", state=RunState.CANCELLED)
    if end is _End.TIMED_OUT:
        return Outcome.failed(
            "timed_out",
            f"The run took longer than {patience.timeout_seconds:g} seconds, which is its limit, and was ended. Give "
            "it more time with “timeoutSeconds”, or find out from its log what it waited for.",
            state=RunState.TIMED_OUT,
            log_tail=voice.tail,
        )
    match voice.verdict:
        case Returned(value):
            return Outcome(RunState.SUCCEEDED, result=value)
        case Failed(name, message):
            raise RunFailed(name, message, log_tail=voice.tail)
    if code < 0:
        raise RunFailed("crashed", _crash_sentence(-code), log_tail=voice.tail)
    raise RunFailed("no_result", _exit_sentence(code), log_tail=voice.tail)


def _crash_sentence(number: int) -> str:
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"The job's process was killed by signal {number} before it had a result."
    hint = _HINTS.get(name, "")
    return f"The job's process was killed by {name.name} before it had a result.{hint} The end of its log may say more."


def _exit_sentence(code: int) -> str:
    if code == _UNSETTLED:
        return (
            f"The job's process ended with exit code {code} and without a result: nothing was left to do, and the "
            "promise that the handler returned never settled."
        )
    return (
        f"The job's process ended with exit code {code} and without a result. Let the handler return its result "
        "instead of ending the process."
    )
