"""Objects that are written piece by piece."""

import hashlib
import os
import threading
from collections.abc import Iterator

import pytest

from libs.common.object_errors import ObjectStoreUnavailable
from libs.common.object_uploads import PART_BYTES, STREAM_BYTES, KnownBytes, Upload
from libs.common.objects import ObjectStore
from libs.common.settings import ServiceSettings
from tests.backend import Backend
from tests.s3_proxy import S3Proxy

_DATA = os.urandom(3 * PART_BYTES + 12_345)
_KNOWN = KnownBytes(len(_DATA), hashlib.sha256(_DATA).hexdigest())
_TYPE = "application/octet-stream"
_NOT_WRITTEN = "(could not|can't be reached to) write a: "


@pytest.fixture
def proxy(backend: Backend) -> Iterator[S3Proxy]:
    with S3Proxy(backend.s3_endpoint).listening() as listening:
        yield listening


@pytest.fixture
def store(backend: Backend, proxy: S3Proxy) -> Iterator[ObjectStore]:
    """The bucket, through the proxy."""
    settings = {**backend.settings, "s3_endpoint": proxy.url}
    store = ObjectStore(ServiceSettings(port=0, **settings))  # type: ignore[arg-type]
    yield store
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upload ")]


def _write(upload: Upload, data: bytes, piece_bytes: int = STREAM_BYTES) -> None:
    for start in range(0, len(data), piece_bytes):
        middle = min(start + piece_bytes // 3, len(data))
        upload.write(data[start:middle], data[middle : start + piece_bytes])


def _read(store: ObjectStore, key: str) -> bytes:
    with store.read(key) as body:
        return b"".join(body)


def test_an_object_in_parts_comes_back_as_it_was_written(store: ObjectStore, proxy: S3Proxy) -> None:
    upload = store.upload("a b", content_type=_TYPE, metadata={"slug": "hello"})
    _write(upload, _DATA, PART_BYTES)
    assert list(store.list("")) == []
    upload.complete()
    found = store.head("a b")
    assert found is not None
    assert (found.size, dict(found.metadata), proxy.parts) == (len(_DATA), {"slug": "hello"}, 4)
    assert _read(store, "a b") == _DATA


def test_a_streamed_object_is_one_part_that_is_seen_when_it_is_complete(store: ObjectStore, proxy: S3Proxy) -> None:
    upload = store.stream("a b", _KNOWN, content_type=_TYPE)
    _write(upload, _DATA)
    assert list(store.list("")) == []
    upload.complete()
    assert proxy.parts == 1
    assert _read(store, "a b") == _DATA
    assert store.abort_uploads("") == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_that_is_busy_is_sent_the_same_bytes_again(
    store: ObjectStore, proxy: S3Proxy, *, streamed: bool
) -> None:
    proxy.refusals, proxy.taken_bytes = 2, 100_000
    if streamed:
        upload = store.stream("a", _KNOWN, content_type=_TYPE)
        _write(upload, _DATA)
    else:
        upload = store.upload("a", content_type=_TYPE)
        _write(upload, _DATA, PART_BYTES)
    upload.complete()
    assert (proxy.refusals, proxy.parts) == (0, 3 if streamed else 6)
    assert _read(store, "a") == _DATA


def test_a_stream_that_is_refused_when_its_beginning_is_gone_fails(store: ObjectStore, proxy: S3Proxy) -> None:
    proxy.refusals, proxy.taken_bytes = 1, PART_BYTES + 3 * STREAM_BYTES
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    with pytest.raises(ObjectStoreUnavailable, match=_NOT_WRITTEN):
        _write_all(upload)
    upload.abort()
    assert (proxy.parts, list(store.list("")), store.abort_uploads("")) == (1, [], 0)


@pytest.mark.parametrize("passed", [2 * PART_BYTES, len(_DATA) - 1])
def test_a_stream_that_is_cut_fails_and_leaves_nothing(store: ObjectStore, proxy: S3Proxy, passed: int) -> None:
    proxy.cut_after = passed
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    with pytest.raises(ObjectStoreUnavailable, match=_NOT_WRITTEN):
        _write_all(upload)
    upload.abort()
    assert (proxy.parts, list(store.list("")), store.abort_uploads("")) == (1, [], 0)


def test_a_server_that_never_takes_the_stream_is_asked_no_more_than_a_few_times(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    proxy.refusals = 10
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    with pytest.raises(ObjectStoreUnavailable, match=_NOT_WRITTEN):
        _write_all(upload)
    upload.abort()
    assert (proxy.parts <= 3, list(store.list("")), store.abort_uploads("")) == (True, [], 0)


def test_bytes_that_are_not_those_that_were_said_are_refused_by_the_server(store: ObjectStore) -> None:
    """On whatever way they were damaged: they never become an object."""
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    damaged = bytearray(_DATA)
    damaged[len(_DATA) // 2] ^= 1
    _write(upload, bytes(damaged))
    with pytest.raises(ObjectStoreUnavailable, match="could not write a: BadDigest"):
        upload.complete()
    upload.abort()
    assert (list(store.list("")), store.abort_uploads("")) == ([], 0)


@pytest.mark.parametrize("written", [0, 100, PART_BYTES, len(_DATA) - 1, len(_DATA)])
def test_a_stream_that_is_given_up_leaves_nothing(store: ObjectStore, written: int) -> None:
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    _write(upload, _DATA[:written])
    upload.abort()
    assert (list(store.list("")), store.abort_uploads("")) == ([], 0)


@pytest.mark.parametrize("written", [_DATA[:-1], _DATA + b"x"], ids=["too few", "too many"])
def test_another_length_than_was_said_never_becomes_an_object(store: ObjectStore, written: bytes) -> None:
    upload = store.stream("a", _KNOWN, content_type=_TYPE)
    with pytest.raises(ValueError, match="a"):
        _write_all(upload, written)
    upload.abort()
    assert (list(store.list("")), store.abort_uploads("")) == ([], 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_upload_that_somebody_ended_is_to_be_made_again(store: ObjectStore, *, streamed: bool) -> None:
    upload = store.stream("a", _KNOWN, content_type=_TYPE) if streamed else store.upload("a", content_type=_TYPE)
    _write(upload, _DATA[: 2 * PART_BYTES], PART_BYTES)
    assert store.abort_uploads("") == 1
    with pytest.raises(ObjectStoreUnavailable, match="was ended while it went on"):
        _write_all(upload, _DATA[2 * PART_BYTES :])
    upload.abort()
    assert list(store.list("")) == []


def _write_all(upload: Upload, data: bytes = _DATA) -> None:
    """Write and complete, either of which may fail."""
    _write(upload, data)
    upload.complete()
