"""Objects of the bucket, one request each."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from libs.common.object_errors import ObjectExists, ObjectMissing, ObjectStoreUnavailable
from libs.common.objects import ObjectStore
from libs.common.settings import ServiceSettings
from tests.backend import Backend

_BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 35\r\nConnection: close\r\n\r\n<Error><Code>SlowDown</Code></Error>"


@pytest.mark.parametrize("key", ["plain.txt", "with space & ümlaut?.txt", "a+b=c%20d~e/(f)[g]#h.txt"])
def test_an_object_comes_back_as_it_was_written_whatever_its_key(backend: Backend, key: str) -> None:
    store = backend.objects()
    store.put(key, b"0123456789", content_type="text/plain; charset=utf-8", metadata={"slug": "hello"})
    found = store.head(key)
    assert found is not None
    assert (found.size, found.content_type, dict(found.metadata)) == (
        10,
        "text/plain; charset=utf-8",
        {"slug": "hello"},
    )
    for start, expected in ((0, b"0123456789"), (4, b"456789")):
        with store.read(key, start=start) as body:
            assert (body.size, body.content_type, b"".join(body)) == (len(expected), found.content_type, expected)
    assert list(store.list("")) == [key]
    store.delete(key)
    store.delete(key)
    assert store.head(key) is None
    with pytest.raises(ObjectMissing):
        store.read(key)


def test_an_empty_object_is_one(backend: Backend) -> None:
    store = backend.objects()
    store.put("empty", b"", content_type="text/plain")
    with store.read("empty") as body:
        assert (body.size, b"".join(body)) == (0, b"")


def test_what_is_to_be_written_once_replaces_nothing(backend: Backend) -> None:
    store = backend.objects()
    store.put_once("once", b"first", content_type="text/plain")
    with pytest.raises(ObjectExists):
        store.put_once("once", b"second", content_type="text/plain")
    with store.read("once") as body:
        assert b"".join(body) == b"first"


def test_wrong_credentials_are_told_from_an_object_that_is_missing(backend: Backend) -> None:
    store = _store(backend, s3_secret_key="wrong-secret-key-wrong")
    for action in (lambda: store.put("a", b"a", content_type="text/plain"), lambda: store.read("a")):
        with pytest.raises(ObjectStoreUnavailable, match="Check the S3 credentials"):
            action()


def test_a_server_that_is_busy_is_asked_again_and_one_that_stays_so_is_unavailable(backend: Backend) -> None:
    with _in_front_of(backend, refusals=2) as endpoint:
        _store(backend, s3_endpoint=endpoint).put("a", b"a", content_type="text/plain")
    assert backend.keys() == ["a"]
    with (
        _in_front_of(backend, refusals=3) as endpoint,
        pytest.raises(ObjectStoreUnavailable, match="could not write b: SlowDown"),
    ):
        _store(backend, s3_endpoint=endpoint).put("b", b"b", content_type="text/plain")
    assert backend.keys() == ["a"]


def test_an_object_that_breaks_off_is_no_shorter_object(backend: Backend) -> None:
    backend.objects().put("long", bytes(1_000_000), content_type="text/plain")
    with _in_front_of(backend, answer_bytes=500_000) as endpoint:
        store = _store(backend, s3_endpoint=endpoint)
        with store.read("long") as body, pytest.raises(ObjectStoreUnavailable):
            list(body)


def _store(backend: Backend, **changes: str) -> ObjectStore:
    return ObjectStore(ServiceSettings(port=0, **{**backend.settings, **changes}))  # type: ignore[arg-type]


@contextmanager
def _in_front_of(backend: Backend, *, refusals: int = 0, answer_bytes: int | None = None) -> Iterator[str]:
    """A server that refuses some connections as S3 does when it is busy, and hands the others on, for one answer."""
    target = urlsplit(backend.settings["s3_endpoint"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = refusals
            while True:
                with suppress(OSError), listener.accept()[0] as caller:
                    request = _request(caller)
                    if left:
                        left -= 1
                        caller.sendall(_BUSY)
                    else:
                        _hand_on(request, caller, (target.hostname or "", target.port or 80), answer_bytes)
                if listener.fileno() < 0:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def _request(caller: socket.socket) -> bytes:
    """A request with its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += caller.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *([0-9]+)", head)
    missing = int(length.group(1)) - len(body) if length else 0
    return received + (caller.recv(missing, socket.MSG_WAITALL) if missing else b"")


def _hand_on(request: bytes, caller: socket.socket, target: tuple[str, int], answer_bytes: int | None) -> None:
    """Pass a request on, and so many bytes of its answer, or the first that come."""
    with socket.create_connection(target, timeout=5) as server:
        server.sendall(request)
        passed = 0
        while passed < (answer_bytes or 1):
            piece = server.recv(65536)
            caller.sendall(piece)
            passed += len(piece)
