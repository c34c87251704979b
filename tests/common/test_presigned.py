"""Requests that somebody without credentials sends: each does the one thing that it was signed for."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError

from libs.common import s3_clock
from libs.common.object_uploads import PART_BYTES
from libs.common.objects import checksum_of
from libs.common.s3_requests import PresignedRequest, PresignedRequests
from tests.backend import Backend

_KEY = "outputs/with space & ümlaut+%20.txt"


def _send(presigned: PresignedRequest, body: bytes | None = None) -> Mapping[str, str]:
    requests = PresignedRequests(connections=2)
    try:
        answer = requests.send(presigned, body=body)
        return {**answer.headers, "body": answer.content.decode("latin-1")}
    finally:
        requests.close()


def _put(backend: Backend, data: bytes, *, expires_seconds: int = 60) -> PresignedRequest:
    return backend.objects().presigned_put(
        _KEY, size=len(data), checksum=checksum_of(data), content_type="text/plain", expires_seconds=expires_seconds
    )


def test_an_object_is_written_and_read(backend: Backend) -> None:
    _send(_put(backend, b"content"), b"content")
    found = backend.objects().head(_KEY)
    assert found is not None
    assert (found.size, found.content_type) == (7, "text/plain")
    assert _send(backend.objects().presigned_read(_KEY, expires_seconds=60))["body"] == "content"


@pytest.mark.parametrize("sent", [b"CONTENT", b"content and more", b""])
def test_nothing_is_written_but_what_was_announced(backend: Backend, sent: bytes) -> None:
    presigned = _put(backend, b"content")
    sent_as_announced = replace(presigned, headers={**presigned.headers, "Content-Length": str(len(sent))})
    with pytest.raises(ClientError):
        _send(sent_as_announced, sent)
    assert backend.keys() == []


def test_the_checksum_can_not_be_replaced(backend: Backend) -> None:
    presigned = _put(backend, b"content")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        _send(
            replace(presigned, headers={**presigned.headers, "x-amz-checksum-sha256": checksum_of(b"CONTENT")}),
            b"CONTENT",
        )
    without = {name: value for name, value in presigned.headers.items() if name != "x-amz-checksum-sha256"}
    with pytest.raises(ClientError):
        _send(replace(presigned, headers=without), b"CONTENT")
    assert backend.keys() == []


def test_a_request_is_for_its_key_and_method_alone(backend: Backend) -> None:
    backend.objects().put("other", b"other", content_type="text/plain")
    presigned = backend.objects().presigned_read(_KEY, expires_seconds=60)
    for changed in (
        replace(presigned, url=presigned.url.replace(presigned.url.partition("?")[0].rpartition("/")[2], "other")),
        replace(presigned, method="DELETE", url=presigned.url),
    ):
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            _send(changed)
    assert backend.keys() == ["other"]


def test_a_request_expires(backend: Backend) -> None:
    presigned = _put(backend, b"content", expires_seconds=-1)
    with pytest.raises(ClientError):
        _send(presigned, b"content")


@pytest.mark.parametrize("minutes", [-3, 3])
def test_a_request_is_signed_by_the_servers_clock(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(minutes=minutes)

    monkeypatch.setattr(s3_clock, "datetime", Wrong)
    objects = backend.objects()
    objects.put(_KEY, b"content", content_type="text/plain")
    presigned = objects.presigned_read(_KEY, expires_seconds=60)
    signed_at = parse_qs(urlsplit(presigned.url).query)["X-Amz-Date"][0]
    off = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - datetime.now(UTC)
    assert abs(off) < timedelta(minutes=1)
    assert _send(presigned)["body"] == "content"


@pytest.mark.parametrize(
    "date",
    ["no date", "Mon, 30 Nov 2026 03:00:00 -0000", "Mon, 30 Nov 2026 03:00:00 GMT, Mon, 30 Nov 2026 03:00:00 GMT"],
)
def test_an_answer_whose_time_makes_no_sense_changes_nothing(date: str) -> None:
    assert not s3_clock.ServerClock().learn(403, {"date": date})


def test_an_object_is_written_in_parts(backend: Backend) -> None:
    parts = [bytes(PART_BYTES), b"the rest"]
    upload = backend.objects().upload("large", content_type="application/x-zeros")
    for number, part in enumerate(parts, 1):
        presigned = upload.presigned_part(number, size=len(part), checksum=checksum_of(part), expires_seconds=60)
        with pytest.raises(ClientError):
            _send(presigned, bytes(len(part) - 1) + b"x")
        upload.add_part(_send(presigned, part)["ETag"], checksum_of(part))
    assert backend.keys() == []
    upload.complete()
    found = backend.objects().head("large")
    assert found is not None
    assert (found.size, found.content_type) == (PART_BYTES + 8, "application/x-zeros")
