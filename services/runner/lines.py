"""Lines from a pipe, a bounded number at a time: whoever floods the pipe waits, and nobody else does."""

import asyncio
from collections.abc import Callable

_TURN_LINES = 50  # each costs some tens of microseconds, from here to the journal
_TURN_BYTES = 64 * 1024


class LineReader(asyncio.Protocol):
    """Splits what comes into lines. A line that is too long comes in pieces, or is dropped but for its beginning.

    No more than some lines are handed over in one turn of the event loop; while more wait, nothing is read.
    """

    def __init__(self, on_line: Callable[[bytes], None], max_bytes: int, *, cut: bool) -> None:
        self._on_line = on_line
        self._max_bytes = max_bytes
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._waiting = b""
        self._rest = bytearray()
        self._dropping = False
        self._is_over = False
        self._is_paused = False
        self._transport: asyncio.ReadTransport | None = None
        self.at_end: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # that of a pipe that is read

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) == len(data):
            self._turn()

    def connection_lost(self, _error: Exception | None) -> None:
        self._is_over = True
        if not self._waiting:
            self._finish()

    def close(self) -> None:
        """Read nothing more."""
        self._waiting = b""
        if self._transport is not None:
            self._transport.close()

    def _turn(self) -> None:
        """Hand over some lines, and come back where more wait."""
        data, start = self._waiting, 0
        for _ in range(_TURN_LINES):
            end = data.find(b"\n", start, start + _TURN_BYTES)
            if end < 0:
                break
            self._take(data[start:end])
            self._finish_line()
            start = end + 1
        else:
            end = -1 if start == len(data) else start
        if end < 0:
            stop = min(len(data), start + _TURN_BYTES)
            self._take(data[start:stop])
            start = stop
        self._waiting = data[start:]
        if self._waiting:
            self._pause()
            self._loop.call_soon(self._turn)
        elif self._is_over:
            self._finish()
        else:
            self._resume()

    def _pause(self) -> None:
        # Transports of pipes could not tell whether they are reading before Python 3.11.4.
        if self._transport is not None and not self._is_over and not self._is_paused:
            self._transport.pause_reading()
            self._is_paused = True

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._is_paused:
            self._transport.resume_reading()
            self._is_paused = False

    def _finish(self) -> None:
        if self._rest:
            self._finish_line()
        if not self.at_end.done():
            self.at_end.set_result(None)

    def _take(self, piece: bytes) -> None:
        if self._dropping:
            return
        self._rest += piece
        while len(self._rest) > self._max_bytes:
            self._on_line(bytes(self._rest[: self._max_bytes]))
            if not self._cut:
                self._dropping = True
                self._rest.clear()
                return
            del self._rest[: self._max_bytes]

    def _finish_line(self) -> None:
        if not self._dropping:
            self._on_line(bytes(self._rest))
        self._dropping = False
        self._rest.clear()
