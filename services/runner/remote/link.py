"""The agent's end of the socket to the holder of the lease."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

from aiohttp import ClientWebSocketResponse, WSMsgType
from pydantic import BaseModel

from libs.common.log import get_logger
from libs.common.object_errors import ObjectMissing, ObjectStoreUnavailable
from libs.common.s3_requests import PresignedRequest
from services.runner.endings import AttemptInterrupted
from services.runner.interrupts import Interrupt, Interrupts
from services.runner.remote.messages import (
    FROM_HOLDER,
    MAX_LINES,
    Answer,
    Assigned,
    Interrupted,
    Line,
    Lines,
    NotUnderstood,
    Question,
    Received,
    Refusal,
    understand,
)

_ASSIGNED_SECONDS = 30.0
_BATCH_CHARACTERS = 256 * 1024
_LINE_COST = 64
_log = get_logger("agent")


class HolderGone(Exception):
    """The socket broke, or the holder fell silent; the message says which."""


class HolderLink:
    """Says things in order, asks, and hears of interrupts. A holder that is gone is a loss of the lease."""

    def __init__(self, socket: ClientWebSocketResponse, interrupts: Interrupts) -> None:
        self._socket = socket
        self._interrupts = interrupts
        self._loop = asyncio.get_running_loop()
        self._ids = count(1)
        self._asked: dict[int, asyncio.Future[PresignedRequest | None]] = {}
        self._out: deque[tuple[Line | BaseModel, int]] = deque()
        self._more = asyncio.Event()
        self._room_bytes = 0
        self._dropped = 0
        self._received = False
        self._gone = asyncio.Event()

    async def assigned(self) -> Assigned:
        """The first message: what is to be done. HolderGone where it does not come."""
        try:
            async with asyncio.timeout(_ASSIGNED_SECONDS):
                message = understand(await self._receive(), FROM_HOLDER)
        except (TimeoutError, NotUnderstood) as error:
            raise HolderGone(str(error) or "it did not say what to do") from None
        if not isinstance(message, Assigned):
            raise HolderGone("it did not say what to do first")
        self._room_bytes = message.max_log_bytes
        return message

    @contextlib.asynccontextmanager
    async def serving(self, *, silence_seconds: float) -> AsyncIterator[None]:
        """Talk and listen for as long as the context is open."""
        tasks = [asyncio.create_task(self._listen(silence_seconds)), asyncio.create_task(self._talk())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def write(self, line: Line) -> None:
        """Add a line to the log. What is more than a log may hold is dropped and counted, but for `system`."""
        cost = len(line.message) + _LINE_COST + (len(json.dumps(line.fields, ensure_ascii=False)) if line.fields else 0)
        self._room_bytes -= cost
        if self._room_bytes < 0 and line.source != "system":
            self._dropped += 1
            return
        self._put(line, cost)

    def say(self, message: BaseModel) -> None:
        """Say something, after all that was said before."""
        self._put(message)

    async def ask(self, make: Callable[[int], Question]) -> PresignedRequest | None:
        """The answer to a question. ObjectMissing, ObjectStoreUnavailable or AttemptInterrupted where it is refused."""
        if self._interrupts.lost:
            raise AttemptInterrupted
        number = next(self._ids)
        answer: asyncio.Future[PresignedRequest | None] = self._loop.create_future()
        self._asked[number] = answer
        self._put(make(number))
        try:
            return await answer
        finally:
            del self._asked[number]

    def ask_from_thread(self, make: Callable[[int], Question]) -> PresignedRequest | None:
        """The same for worker threads; blocks."""
        return asyncio.run_coroutine_threadsafe(self.ask(make), self._loop).result()

    async def left(self, *, timeout_seconds: float) -> bool:
        """Wait until the holder leaves; whether it had heard how the attempt ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._gone.wait()
        return self._received

    def _put(self, item: Line | BaseModel, cost: int = 0) -> None:
        self._out.append((item, cost))
        self._more.set()

    async def _talk(self) -> None:
        while True:
            await self._more.wait()
            while self._out or self._dropped:
                with_lines = not self._out or isinstance(self._out[0][0], Line)
                message = self._lines() if with_lines else self._out.popleft()[0]
                try:
                    await self._socket.send_str(message.model_dump_json())
                except (ConnectionError, RuntimeError) as error:
                    self._lose(f"it can't be spoken to: {error}")
                    return
            self._more.clear()

    def _lines(self) -> Lines:
        """The lines that come next, as many as may be in one message."""
        lines: list[Line] = []
        characters = 0
        while self._out and len(lines) < MAX_LINES and characters < _BATCH_CHARACTERS:
            first, cost = self._out[0]
            if not isinstance(first, Line):
                break
            self._out.popleft()
            lines.append(first)
            characters += cost
        dropped, self._dropped = self._dropped, 0
        return Lines(lines=lines, dropped=dropped)

    async def _listen(self, silence_seconds: float) -> None:
        try:
            while True:
                async with asyncio.timeout(silence_seconds):
                    text = await self._receive()
                self._hear(understand(text, FROM_HOLDER))
        except TimeoutError:
            self._lose(f"it was silent for {silence_seconds:g} seconds")
        except (HolderGone, NotUnderstood) as error:
            self._lose(str(error))

    async def _receive(self) -> str:
        message = await self._socket.receive()
        if message.type is not WSMsgType.TEXT:
            raise HolderGone("the connection ended")
        text: str = message.data
        return text

    def _hear(self, message: Any) -> None:
        match message:
            case Interrupted(reason=reason):
                self._interrupts.set(reason)
            case Answer(id=number, request=request):
                self._settle(number, lambda asked: asked.set_result(request))
            case Refusal(id=number):
                self._settle(number, lambda asked: asked.set_exception(_error_of(message)))
            case Received():
                self._received = True

    def _settle(self, number: int, settle: Callable[["asyncio.Future[PresignedRequest | None]"], None]) -> None:
        asked = self._asked.get(number)
        if asked is not None and not asked.done():
            settle(asked)

    def _lose(self, reason: str) -> None:
        self._gone.set()
        if self._received:
            return
        _log.warning("holder_gone", reason=reason)
        self._interrupts.set(Interrupt.LOSS)
        for number in list(self._asked):
            self._settle(number, lambda asked: asked.set_exception(AttemptInterrupted()))


def _error_of(refusal: Refusal) -> Exception:
    match refusal.reason:
        case "missing":
            return ObjectMissing(refusal.message)
        case "unavailable":
            return ObjectStoreUnavailable(refusal.message)
        case "lost":
            return AttemptInterrupted()
