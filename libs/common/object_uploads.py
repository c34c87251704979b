"""Objects that are written piece by piece, and visible when they are complete. These methods block."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from libs.common.object_errors import ObjectMissing, translated, while_uploading
from libs.common.s3_requests import ObjectRequests, PassingPayload, Payload, PresignedRequest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 * 1024 * 1024
"""Size of the parts of an upload; S3 wants at least 5 MiB for all but the last."""

MAX_PART_BYTES = 5 * 1024**3
"""The largest part that S3 takes."""

STREAM_BYTES = 1024 * 1024
"""How many bytes a streamed upload is well given at a time."""

_MAX_WAITING = 4


@dataclass(frozen=True, slots=True)
class KnownBytes:
    """Bytes that are known before they are there: how many, and their SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """What an upload becomes, and by which clients."""

    client: "S3Client"
    requests: ObjectRequests
    bucket: str
    key: str
    content_type: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Upload:
    """A multipart upload. Either `complete` or `abort` ends it; all may be called from worker threads, in turn."""

    def __init__(self, target: UploadTarget) -> None:
        self.key = target.key
        self._client = target.client
        self._requests = target.requests
        self._bucket = target.bucket
        self._parts: list[CompletedPartTypeDef] = []
        with translated("write", self.key):
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket,
                Key=self.key,
                ContentType=target.content_type,
                Metadata=dict(target.metadata),
                ChecksumAlgorithm="SHA256",
            )
        self._upload_id = answer["UploadId"]

    def write(self, *chunks: bytes) -> None:
        """Send the next bytes as a part: PART_BYTES, or less for the last. The server verifies their SHA-256."""
        self._send_part(Payload.of(chunks))

    def presigned_part(self, number: int, *, size: int, checksum: str, expires_seconds: int) -> PresignedRequest:
        """A request that sends a part of `size` bytes with this checksum, and no other; `add_part` it then."""
        return self._requests.presign(
            "PUT",
            self.key,
            headers={"Content-Length": str(size), "x-amz-checksum-sha256": checksum},
            query=self._part(number),
            expires_seconds=expires_seconds,
        )

    def add_part(self, etag: str, checksum: str) -> None:
        """Count a part that was sent as the next one; `etag` is what the server answered."""
        self._parts.append({"ETag": etag, "PartNumber": len(self._parts) + 1, "ChecksumSHA256": checksum})

    def complete(self) -> None:
        """Make the object visible."""
        with while_uploading(self.key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self.key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": self._parts},
            )

    def abort(self) -> None:
        """Forget the upload and its parts; nothing was or becomes visible."""
        try:
            with translated("abort the upload of", self.key):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self.key, UploadId=self._upload_id)
        except ObjectMissing:
            return

    def _send_part(self, payload: Payload) -> None:
        with while_uploading(self.key):
            answer = self._requests.send("PUT", self.key, query=self._part(len(self._parts) + 1), body=payload)
        self.add_part(answer.headers["ETag"], payload.checksum)

    def _part(self, number: int) -> dict[str, str]:
        return {"partNumber": str(number), "uploadId": self._upload_id}


class StreamedUpload(Upload):
    """An upload whose length and SHA-256 are known before its bytes: one part, which is sent on while it comes.

    That spares both sides most of what parts cost. The server has the bytes already when the last are written; it
    verifies the SHA-256 of the whole. What it breaks off can't be sent again: Unavailable, from `write` or `complete`.
    """

    def __init__(self, target: UploadTarget, known: KnownBytes) -> None:
        super().__init__(target)
        self._stream = _Stream()
        self._missing_bytes = known.size
        self._failure: BaseException | None = None
        payload = PassingPayload(iter(self._stream), size=known.size, sha256=known.sha256)
        # A thread of its own: it waits for whoever writes, for as long as that takes, and pools have other work.
        self._sender = threading.Thread(target=self._run, args=(payload,), name=f"upload {self.key}", daemon=True)
        self._sender.start()

    def write(self, *chunks: bytes) -> None:
        """Hand the next bytes over; waits while there are some MiB to be sent before them."""
        self._missing_bytes -= sum(map(len, chunks))
        if self._missing_bytes < 0:
            raise ValueError(f"{self.key} is written longer than was said")
        if not self._stream.put(chunks):
            self._end()
        if not self._missing_bytes:
            self._stream.close()  # so that the answer is read, and thread and connection are given up

    def complete(self) -> None:
        """Make the object visible, when the server has verified all of it."""
        if self._missing_bytes:
            raise ValueError(f"{self._missing_bytes} bytes of {self.key} are missing")
        self._stream.close()
        self._end()
        super().complete()

    def abort(self) -> None:
        """Break the connection off if it is at work, and forget what came."""
        self._stream.abandon()
        self._sender.join()
        super().abort()

    def _run(self, payload: Payload) -> None:
        try:
            self._send_part(payload)
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._failure = error
        finally:
            self._stream.abandon()  # nobody takes what is still put in

    def _end(self) -> None:
        """Wait until it is sent, and raise why it could not be."""
        self._sender.join()
        if self._failure is not None:
            raise self._failure


class _Stream:
    """Chunks on their way from one thread to another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Sequence[bytes]] = deque()
        self._closed = False
        self._abandoned = False

    def put(self, chunks: Sequence[bytes]) -> bool:
        """Add chunks, once there is room; whether anybody will take them."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _MAX_WAITING or self._abandoned)
            if not self._abandoned:
                self._waiting.append(chunks)
                self._changed.notify_all()
            return not self._abandoned

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """What comes is neither given nor taken any more."""
        with self._changed:
            self._abandoned = True
            self._waiting.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, until the stream is closed. Raises Abandoned where it is abandoned."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed or self._abandoned)
                if self._abandoned:
                    raise Abandoned
                if not self._waiting:
                    return
                chunks = self._waiting.popleft()
                self._changed.notify_all()
            yield from chunks


class Abandoned(Exception):
    """What is being sent is not to be sent."""
