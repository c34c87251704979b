"""Something in front of the S3 server that refuses or breaks off uploads, as servers and networks do."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_PART = re.compile(rb"PUT [^ ]*partNumber=")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 35\r\nConnection: close\r\n\r\n<Error><Code>SlowDown</Code></Error>"


class S3Proxy:
    """Passes requests on to the server at `endpoint`, one for each connection.

    Of the next `refusals` parts it takes `taken_bytes` and answers that the server is busy. Where `cut_after` is set,
    it breaks the connections off when so many bytes of a part have passed.
    """

    def __init__(self, endpoint: str) -> None:
        found = urlsplit(endpoint)
        self._target = (found.hostname or "", found.port or 80)
        self.url = ""
        self.refusals = 0
        self.taken_bytes = 0
        self.cut_after: int | None = None
        self.parts = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator["S3Proxy"]:
        """Be there for as long as the context is open."""
        threads: list[threading.Thread] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                while True:
                    try:
                        caller, _ = listener.accept()
                    except OSError:
                        return
                    threads.append(threading.Thread(target=self._serve, args=(caller,)))
                    threads[-1].start()

            accepting = threading.Thread(target=accept)
            accepting.start()
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()
                for thread in threads:
                    thread.join()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            caller.settimeout(20)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = caller.recv(65536)
                if not piece:
                    return
                received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            is_part = _PART.match(head) is not None
            self.parts += is_part
            if is_part and self.refusals:
                self.refusals -= 1
                _take(caller, self.taken_bytes - len(body))
                caller.sendall(_BUSY)
                return
            length = _LENGTH.search(head)
            self._pass_on(
                caller,
                re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head) + b"\r\nConnection: close\r\n\r\n" + body,
                (int(length.group(1)) if length else 0) - len(body),
                None if self.cut_after is None or not is_part else self.cut_after - len(body),
            )

    def _pass_on(self, caller: socket.socket, begin: bytes, missing: int, until_cut: int | None) -> None:
        with socket.create_connection(self._target, timeout=20) as server:
            server.sendall(begin)
            while missing > 0:
                if until_cut is not None and until_cut <= 0:
                    return
                piece = caller.recv(min(65536, missing, until_cut or missing))
                if not piece:
                    return  # whoever asked has gone; so does the server's connection
                server.sendall(piece)
                missing -= len(piece)
                until_cut = until_cut and until_cut - len(piece)
            while piece := server.recv(65536):
                caller.sendall(piece)


def _take(caller: socket.socket, size: int) -> None:
    while size > 0 and (piece := caller.recv(min(65536, size))):
        size -= len(piece)
