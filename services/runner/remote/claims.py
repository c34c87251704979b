"""Attempts that wait for an agent, and how it takes one: with a token that is good for this attempt, once."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from libs.common.api import Answer, operation
from libs.common.auth import new_token, token_hash
from libs.common.errors import Conflict, Unauthenticated
from services.runner.remote.agent import AGENT_NAME, AGENT_VERSION

AGENT_PATH = "/internal/attempt"
"""Where agents are served."""

_MAX_NAME = 253
_CLOSE_SECONDS = 2.0  # for who is gone to say so


@dataclass(frozen=True, slots=True)
class Taken:
    """An agent that took an attempt: the socket to it, and what it says of itself. `left`: its request may end."""

    socket: web.WebSocketResponse
    version: str
    name: str
    left: asyncio.Event = field(default_factory=asyncio.Event)


class Claim:
    """An attempt that is there to be taken with `token`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._taken: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()

    async def taken(self) -> Taken:
        """Wait for the agent."""
        return await asyncio.shield(self._taken)

    async def serve(self, taken: Taken) -> None:
        """Keep the agent's request until it is left."""
        if self._taken.done():
            return
        self._taken.set_result(taken)
        await taken.left.wait()

    def close(self) -> None:
        """The attempt is over."""
        if self._taken.done() and not self._taken.cancelled():
            self._taken.result().left.set()
        self._taken.cancel()


class Claims:
    """Attempts of this runner that wait. `heartbeat_seconds`: how often an agent that took one has to answer a ping;
    it is gone when it has not for half as long again. `max_message_bytes` bounds what it says at a time.
    """

    def __init__(self, *, heartbeat_seconds: float, max_message_bytes: int) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._max_message_bytes = max_message_bytes
        self._waiting: dict[bytes, Claim] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Claim]:
        """An attempt that can be taken, and is over when the context ends."""
        claim = Claim(new_token())
        key = token_hash(claim.token)
        self._waiting[key] = claim
        try:
            yield claim
        finally:
            self._waiting.pop(key, None)
            claim.close()

    def take(self, token: str) -> Claim:
        """The attempt of this token, which nobody can take any more. Unauthenticated where there is none."""
        claim = self._waiting.pop(token_hash(token), None)
        if claim is None:
            raise Unauthenticated("the token is of no attempt that waits, or was used already.")
        return claim

    def socket(self) -> web.WebSocketResponse:
        """What an agent is answered with."""
        return web.WebSocketResponse(
            timeout=_CLOSE_SECONDS,
            heartbeat=self._heartbeat_seconds,
            max_msg_size=self._max_message_bytes,
            compress=False,
        )


CLAIMS = web.AppKey("claims", Claims)


@operation(None, answers={101: Answer(None, "The socket.")}, errors=["unauthenticated"])
async def get_attempt(request: web.Request) -> web.StreamResponse:
    """Take an attempt, over a WebSocket."""
    claims = request.app[CLAIMS]
    socket = claims.socket()
    if not socket.can_prepare(request).ok:
        raise Conflict("this is a WebSocket, for agents that make an attempt at a run.")
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("this needs the token of an attempt.")
    claim = claims.take(token.strip())
    await socket.prepare(request)
    name = request.headers.get(AGENT_NAME, "")[:_MAX_NAME]
    await claim.serve(Taken(socket, request.headers.get(AGENT_VERSION, "")[:_MAX_NAME], name))
    return socket
