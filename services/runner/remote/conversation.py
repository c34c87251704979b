"""The holder's end of the socket to an agent: it tells what is to be done, answers, and hears how it goes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import WSMsgType
from pydantic import BaseModel

from libs.common.errors import StowageError
from libs.common.log import get_logger
from libs.common.models import RunState
from libs.common.object_errors import ObjectMissing, ObjectStoreUnavailable
from libs.common.s3_requests import PresignedRequest
from services.runner.endings import AttemptInterrupted, Outcome, RunFailed
from services.runner.holder import Provision
from services.runner.interrupts import Interrupt
from services.runner.lease_holder import LeaseHolder
from services.runner.limits import Rules
from services.runner.outputs import OutputLimits
from services.runner.remote.claims import Taken
from services.runner.remote.messages import (
    FROM_AGENT,
    MAX_MILLISECONDS,
    Alive,
    Answer,
    Assigned,
    Confined,
    Ended,
    Interrupted,
    Line,
    Lines,
    NotUnderstood,
    Phases,
    Progress,
    Question,
    Received,
    Refusal,
    Started,
    WantAbortion,
    WantCompletion,
    WantPart,
    WantPut,
    WantRead,
    WantUpload,
    WantUploading,
    understand,
)
from services.runner.remote.written import REQUEST_SECONDS, WrittenOutputs
from services.runner.sandbox.layers import Confinement, Level
from services.runner.store import Timings
from services.runner.values import UnstorableValue, clean_text, clean_value, parse_json, require_storable

_QUESTIONS = 32
_SYSTEM_LINES = 100
_SYSTEM_CHARACTERS = 4000
_SHOW_SECONDS = 0.25
_log = get_logger("runner")


class AgentGone(Exception):
    """The socket broke before the agent had said how the attempt ended; the message says how it broke."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all attempts that agents make for this runner.

    An agent that hears nothing for `silence_seconds` gives up; it is told several times within them that we are there.
    """

    rules: Rules
    sandbox: Level | None
    sandbox_minimum: Level
    max_log_bytes: int
    silence_seconds: float


@dataclass(slots=True)
class Account:
    """What is known of an attempt that an agent makes. `begun` is when the holder began with it (time.monotonic).

    `is_started`: the handler was called. `is_final`: the agent was heard to the end.
    """

    begun: float
    taken_at: float | None = None
    timings: Timings = field(default_factory=Timings)
    confinement: Confinement | None = None
    received_bytes: int = 0
    is_started: bool = False
    is_final: bool = False

    def note(self, phases: Phases, confined: Confined | None) -> None:
        """What the agent says. What it took until it knew what to do belongs to the first phases."""
        before = round(((self.taken_at or self.begun) - self.begun) * 1000)
        values = phases.model_dump()
        for name in ("first_byte_ms", "fetch_ms"):
            if values[name] is not None:
                values[name] = min(values[name] + before, MAX_MILLISECONDS)
        self.timings = Timings(**values)
        if confined is not None:
            self.confinement = Confinement(confined.level, tuple(confined.layers), confined.network)


class Conversation:
    """Leads an agent through one attempt."""

    def __init__(self, holder: LeaseHolder, threads: Executor, terms: Terms, taken: Taken, account: Account) -> None:
        self._holder = holder
        self._terms = terms
        self._taken = taken
        self._socket = taken.socket
        self._account = account
        rules = terms.rules
        self._written = WrittenOutputs(
            holder.objects, threads, holder.order, OutputLimits(rules.max_outputs, rules.max_output_bytes)
        )
        self._uploading = contextlib.AsyncExitStack()
        self._questions: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._readable: set[str] = set()
        self._may_write: bool | None = None
        self._in_parts = False
        self._system_lines = 0
        self._running: Timings | None = None
        self._progress: Progress | None = None
        self._news = asyncio.Event()

    async def lead(self, provision: Provision) -> Outcome | None:
        """Let the agent make the attempt; what it came to, or None where it was interrupted.

        RunFailed where it failed, AgentGone. The socket is left then.
        """
        order = self._holder.order
        self._readable = {order.artifact.object_key}
        self._readable |= {output.object_key for item in provision.inputs for output, _ in item.files}
        assigned = Assigned(
            order=replace(order, parameters={}),
            parameters=json.dumps(order.parameters, ensure_ascii=False),
            provision=provision,
            rules=self._terms.rules,
            sandbox=self._terms.sandbox,
            sandbox_minimum=self._terms.sandbox_minimum,
            max_log_bytes=self._terms.max_log_bytes,
            silence_seconds=self._terms.silence_seconds,
        )
        self._account.taken_at = time.monotonic()
        try:
            async with self._uploading, self._accompanied():
                await self._say(assigned)
                ended = await self._until_ended()
                self._taken.left.set()
                return await self._outcome_of(ended)
        except NotUnderstood as error:
            _log.warning("agent_not_understood", run=order.run_id, attempt=order.attempt, error=str(error))
            raise RunFailed(
                "agent_not_understood",
                f"What came from where the run was executed made no sense, and was not believed: {error}.",
            ) from None
        finally:
            self._taken.left.set()

    @property
    def is_uploading(self) -> bool:
        """Whether the handler has done its work, and its outputs are being written."""
        return self._may_write is True

    async def interrupt(self, reason: Interrupt) -> None:
        """Ask the agent to end the attempt."""
        with contextlib.suppress(AgentGone):
            await self._say(Interrupted(reason=reason))

    @contextlib.asynccontextmanager
    async def _accompanied(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._stay_alive()), asyncio.create_task(self._show())]
        try:
            yield
        finally:
            tasks += self._questions
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ended(self) -> Ended:
        while True:
            received = await self._socket.receive()
            if self._failure is not None:
                raise self._failure
            if received.type is not WSMsgType.TEXT:
                raise AgentGone(str(received.data or received.extra or "it ended")[:200])
            match understand(received.data, FROM_AGENT):
                case Ended() as ended:
                    self._account.note(ended.phases, ended.confined)
                    self._account.received_bytes = ended.received_bytes
                    self._account.is_final = True
                    await self._say(Received())
                    return ended
                case Lines() as lines:
                    self._write(lines)
                case Started() as started:
                    self._account.note(started.phases, started.confined)
                    self._account.is_started = True
                    self._running = self._account.timings
                    self._news.set()
                case Progress() as progress:
                    self._progress = progress
                    self._news.set()
                case question:
                    self._begin_answer(question)

    async def _outcome_of(self, ended: Ended) -> Outcome | None:
        match ended.state:
            case "succeeded":
                result = self._result_of(ended)
                return Outcome(RunState.SUCCEEDED, result=result, outputs=await self._stored_outputs())
            case "interrupted":
                return None
            case "cancelled" if self._holder.interrupts.reason is not Interrupt.CANCEL:
                raise NotUnderstood("nobody wanted the run to be cancelled")
            case "failed":
                raise RunFailed(ended.kind or "Error", ended.error or "", log_tail=_clean(ended.log_tail))
            case state:
                return Outcome.failed(
                    ended.kind or state,
                    ended.error or "",
                    state=RunState(state),
                    log_tail=_clean(ended.log_tail),
                )

    def _result_of(self, ended: Ended) -> Any:
        maximum = self._terms.rules.max_result_bytes
        try:
            result = parse_json(ended.result or "null")
            size = require_storable(result)
        except UnstorableValue as error:
            raise NotUnderstood(f"the result can't be stored: {error}") from None
        if size > maximum:
            raise NotUnderstood(f"the result is {size} bytes as JSON; the limit is {maximum}")
        return result

    async def _stored_outputs(self) -> Any:
        try:
            return await self._written.written()
        except ObjectStoreUnavailable as error:
            raise RunFailed(
                "object_store_unavailable", f"The outputs could not be looked at: {error.message}."
            ) from error

    def _write(self, lines: Lines) -> None:
        log = self._holder.log
        log.dropped(lines.dropped)
        for line in lines.lines:
            fields = clean_value(line.fields) if line.fields else None
            log.write(self._source_of(line), clean_text(line.message), level=line.level, fields=fields)

    def _source_of(self, line: Line) -> str:
        """Lines of the system are always kept, so there may not be many of them."""
        if line.source != "system":
            return line.source
        self._system_lines += 1
        short = self._system_lines <= _SYSTEM_LINES and len(line.message) <= _SYSTEM_CHARACTERS
        return "system" if short else "logger"

    def _begin_answer(self, question: Question) -> None:
        if len(self._questions) >= _QUESTIONS:
            raise NotUnderstood("it asks too much at a time")
        task = asyncio.create_task(self._answer(question))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _answer(self, question: Question) -> None:
        try:
            await self._say(Answer(id=question.id, request=await self._grant(question)))
        except ObjectMissing as error:
            await self._refuse(question, "missing", error)
        except ObjectStoreUnavailable as error:
            await self._refuse(question, "unavailable", error)
        except AttemptInterrupted:
            await self._say(Refusal(id=question.id, reason="lost", message="the lease is lost"))
        except (NotUnderstood, RunFailed) as error:
            self._failure = error
            await self._socket.close()  # whoever waits for the next message learns of it
        except AgentGone:
            return  # the same
        except Exception as error:  # noqa: BLE001  # of the runner's own: the attempt breaks off by it
            self._failure = error
            await self._socket.close()

    async def _refuse(self, question: Question, reason: Any, error: StowageError) -> None:
        await self._say(Refusal(id=question.id, reason=reason, message=error.message))

    async def _grant(self, question: Question) -> PresignedRequest | None:
        objects, written = self._holder.objects, self._written
        match question:
            case WantRead(key=key):
                if key not in self._readable:
                    raise NotUnderstood("it wants to read what is none of its run's")
                return objects.presigned_read(key, expires_seconds=REQUEST_SECONDS)
            case WantUploading(in_parts=in_parts):
                if self._may_write is not None:
                    raise NotUnderstood("it wants to write outputs for a second time")
                self._may_write = False  # until that is announced
                await self._uploading.enter_async_context(self._holder.uploading(in_parts=in_parts))
                self._may_write, self._in_parts = True, in_parts
            case _ if not self._may_write:
                raise NotUnderstood("it wants to write outputs that were not announced")
            case WantPut(path=path, size=size, digest=digest):
                return written.put(path, size, digest)
            case WantUpload() if not self._in_parts:
                raise NotUnderstood("it wants to write outputs in parts, and none is as large")
            case WantUpload(path=path):
                await written.begin(path)
            case WantPart(path=path, number=number, size=size, digest=digest):
                return written.part(path, number, size, digest)
            case WantCompletion(path=path, digest=digest, etags=etags):
                await written.complete(path, digest, etags)
            case WantAbortion(path=path):
                await written.abort(path)
        return None

    async def _say(self, message: BaseModel) -> None:
        try:
            await self._socket.send_str(message.model_dump_json())
        except (ConnectionError, RuntimeError) as error:  # it is closing already
            raise AgentGone(str(error)) from None

    async def _stay_alive(self) -> None:
        with contextlib.suppress(AgentGone):
            while True:
                await asyncio.sleep(self._terms.silence_seconds / 4)
                await self._say(Alive())

    async def _show(self) -> None:
        """Show what the agent said last, no more often than somebody could look."""
        while True:
            await self._news.wait()
            self._news.clear()
            running, self._running = self._running, None
            if running is not None:
                await self._holder.started(running, self._account.confinement)
            progress, self._progress = self._progress, None
            if progress is not None:
                message = None if progress.message is None else clean_text(progress.message)
                await self._holder.progressed(progress.fraction, message)
            await asyncio.sleep(_SHOW_SECONDS)


def _clean(lines: list[str]) -> list[str]:
    return [clean_text(line) for line in lines]
