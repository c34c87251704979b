"""A way to a server on which chosen requests get stuck."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE_BYTES = 64 * 1024


@dataclass
class Stall:
    """Requests whose head matches get stuck: before they are sent, or after a part of the answer has come."""

    pattern: re.Pattern[bytes]
    after_bytes: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class StallingProxy:
    """Forwards connections to a server. `url` leads through it."""

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self._target = (str(place.hostname), int(place.port or 80))
        self._stalls: list[Stall] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._refuses = False
        self.refused = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["StallingProxy"]:
        """Listen on a free port for as long as the context is open."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            for stall in self._stalls:
                stall.released.set()
            server.close()

    def stall(self, pattern: bytes, *, after_bytes: int = 0) -> Stall:
        """Let requests in whose head `pattern` is found get stuck from now on, until they are released."""
        stall = Stall(re.compile(pattern), after_bytes)
        self._stalls.append(stall)
        return stall

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Close every connection, those that are open and those that come, and count them in `refused`."""
        self._refuses = True
        for writer in self._open:
            writer.close()
        try:
            yield
        finally:
            self._refuses = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            self.refused += 1
            writer.close()
            return
        self._open.add(writer)
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            connection = _Connection()
            await asyncio.gather(
                self._send(reader, server_writer, connection), _answer(server_reader, writer, connection)
            )

    async def _send(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: "_Connection"
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while piece := await reader.read(_PIECE_BYTES):
                for stall in self._stalls:
                    if stall.pattern.search(piece) and not stall.released.is_set():
                        if stall.after_bytes:
                            connection.stall = stall
                        else:
                            stall.reached.set()
                            await stall.released.wait()
                writer.write(piece)
                await writer.drain()


@dataclass
class _Connection:
    stall: Stall | None = None


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection) -> None:
    answered = 0
    with contextlib.suppress(OSError), contextlib.closing(writer):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
            stall = connection.stall
            if stall is not None:
                answered += len(piece)
                if answered >= stall.after_bytes:
                    stall.reached.set()
                    await stall.released.wait()
