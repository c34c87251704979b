"""An agent that a test plays, to say what the real one never would."""

import json
from typing import Any

import aiohttp

from libs.common.version import VERSION
from services.runner.remote.agent import AGENT_NAME, AGENT_VERSION

PHASES: dict[str, Any] = {}
SUCCEEDED: dict[str, Any] = {
    "type": "ended",
    "state": "succeeded",
    "result": "1",
    "phases": PHASES,
    "confined": None,
    "received_bytes": 0,
}


class PlayedAgent:
    """The other end of the socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.assigned: dict[str, Any] = {}

    async def say(self, **message: Any) -> None:
        """Say something."""
        await self._socket.send_str(json.dumps(message))

    async def say_text(self, text: str) -> None:
        """Say something that may be no message."""
        await self._socket.send_str(text)

    async def say_bytes(self, data: bytes) -> None:
        """The same, not as text."""
        await self._socket.send_bytes(data)

    async def hear(self, *types: str) -> dict[str, Any]:
        """The next message of these types; one of the type `closed` where the socket was closed instead."""
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                return {"type": "closed"}
            found: dict[str, Any] = json.loads(message.data)
            if not types or found["type"] in types:
                return found

    async def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question."""
        await self.say(id=1, **question)
        return await self.hear("answer", "refusal", "closed")


async def take(
    session: aiohttp.ClientSession, url: str, token: str, *, version: str = VERSION, name: str = "played"
) -> PlayedAgent:
    """Take an attempt."""
    headers = {"Authorization": f"Bearer {token}", AGENT_VERSION: version, AGENT_NAME: name}
    agent = PlayedAgent(await session.ws_connect(url, headers=headers))
    agent.assigned = await agent.hear()
    return agent
