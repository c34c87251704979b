"""The bucket. Methods block and are meant for worker threads (`asyncio.to_thread`); the client is thread-safe.

Where the database and the bucket can disagree the database says what should be there and the bucket what is.
"""

import base64
import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.response import StreamingBody

from libs.common.object_errors import ObjectMissing, translated
from libs.common.object_uploads import KnownBytes, StreamedUpload, Upload, UploadTarget
from libs.common.s3_clock import ServerClock
from libs.common.s3_requests import ATTEMPTS, CONNECT_SECONDS, READ_SECONDS, ObjectRequests, PresignedRequest
from libs.common.settings import ServiceSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_READ_BYTES = 1024 * 1024
_METADATA = "x-amz-meta-"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What HEAD tells of an object: size in bytes, content type, user metadata."""

    key: str
    size: int
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """What a list tells of an object: size in bytes, and when it was written by the server's clock."""

    key: str
    size: int
    modified_at: datetime


Listing: TypeAlias = list[ListedObject]


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that was begun at `initiated`, by the server's clock."""

    key: str
    id: str
    initiated: datetime


ARTIFACTS = "artifacts/sha256/"


def artifact_key(digest: str, compression: str) -> str:
    """Where the artifact with `digest` (`sha256:<hex>`) lives: `artifacts/sha256/ab/abcd….tgz`, `.tar.zst` for zstd."""
    value = digest.removeprefix("sha256:")
    return f"{ARTIFACTS}{value[:2]}/{value}.{'tar.zst' if compression == 'zstd' else 'tgz'}"


def build_log_key(build_id: str) -> str:
    """Where the log of a build lives."""
    return f"logs/builds/{build_id}.log"


def run_log_prefix(run_id: str) -> str:
    """What the keys of a run's log begin with. The run's record says which one it is: no two writers have the same."""
    return f"logs/runs/{run_id}/"


def run_outputs_prefix(run_id: str) -> str:
    """What the keys of a run's outputs begin with, those of all its attempts."""
    return f"outputs/{run_id}/"


def output_key(run_id: str, attempt: int, path: str) -> str:
    """Where an attempt puts the output `path` of a run. The run's record says which attempt's it is."""
    return f"outputs/{run_id}/{attempt}/{path}"


def checksum_of(data: bytes | memoryview) -> str:
    """The SHA-256 of `data` as S3 writes it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@functools.cache
def _session() -> boto3.session.Session:
    """What boto3 needs to make clients: the description of S3, some 20 MB, is read once. Clients share nothing else."""
    return boto3.session.Session()


class ObjectStore:
    """One bucket of an S3 server.

    What is one request for an object or a part of it is sent by `ObjectRequests`; boto3 begins and ends uploads, lists,
    copies and presigns.
    """

    def __init__(self, settings: ServiceSettings, *, connections: int = 32) -> None:
        self.bucket = settings.s3_bucket
        self._client: S3Client = _session().client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            aws_access_key_id=settings.s3_access_key.get_secret_value(),
            aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
            region_name=settings.s3_region,
            config=Config(
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                max_pool_connections=connections,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        clock = ServerClock()
        clock.sign_requests_of(self._client)
        self._requests = ObjectRequests(settings, clock, connections=connections)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._requests.close()

    def check(self) -> None:
        """Raise ObjectStoreUnavailable unless the bucket can be reached with our credentials."""
        with translated("look at", self.bucket):
            self._client.head_bucket(Bucket=self.bucket)

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None where there is none."""
        try:
            with translated("look at", key):
                found = self._requests.send("HEAD", key).headers
        except ObjectMissing:
            return None
        metadata = {
            name.lower().removeprefix(_METADATA): value
            for name, value in found.items()
            if name.lower().startswith(_METADATA)
        }
        return ObjectInfo(key, int(found["Content-Length"]), found.get("Content-Type", ""), metadata)

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str] | None = None) -> None:
        """Write a small object in one request; the server verifies its SHA-256."""
        headers = {"Content-Type": content_type, "x-amz-checksum-sha256": checksum_of(data)}
        headers |= {f"{_METADATA}{name}": value for name, value in (metadata or {}).items()}
        with translated("write", key):
            self._requests.send("PUT", key, headers=headers, body=data)

    def put_once(self, key: str, data: bytes, *, content_type: str) -> None:
        """Write a small object that is not there yet; raises ObjectExists, as far as the server knows conditions."""
        headers = {"Content-Type": content_type, "x-amz-checksum-sha256": checksum_of(data), "If-None-Match": "*"}
        with translated("write", key):
            self._requests.send("PUT", key, headers=headers, body=data)

    def upload(self, key: str, *, content_type: str, metadata: Mapping[str, str] | None = None) -> Upload:
        """Begin to write an object in parts. Nothing is visible before `Upload.complete`."""
        return Upload(UploadTarget(self._client, self._requests, self.bucket, key, content_type, metadata or {}))

    def stream(self, key: str, known: KnownBytes, *, content_type: str) -> Upload:
        """Begin to write an object whose bytes are known before they come, as one part; of MAX_PART_BYTES at most."""
        return StreamedUpload(UploadTarget(self._client, self._requests, self.bucket, key, content_type), known)

    def copy(self, source: str, target: str, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """Copy within the bucket, on the server, giving the target its own content type and metadata."""
        with translated("copy", source):
            self._client.copy_object(
                Bucket=self.bucket,
                Key=target,
                CopySource={"Bucket": self.bucket, "Key": source},
                ContentType=content_type,
                Metadata=dict(metadata),
                MetadataDirective="REPLACE",
            )

    def read(self, key: str, *, start: int = 0) -> "ObjectBody":
        """Open an object for reading from byte `start` on; raises ObjectMissing. Close it, or use it as a context."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with translated("read", key):
            answer = self._requests.send("GET", key, headers=headers, stream=True)
        return ObjectBody.of(key, answer)

    def presigned_read(self, key: str, *, expires_seconds: int) -> PresignedRequest:
        """A request that reads an object."""
        return self._requests.presign("GET", key, expires_seconds=expires_seconds)

    def presigned_put(
        self, key: str, *, size: int, checksum: str, content_type: str, expires_seconds: int
    ) -> PresignedRequest:
        """A request that writes an object of `size` bytes with this checksum (`checksum_of`), and no other."""
        headers = {"Content-Type": content_type, "Content-Length": str(size), "x-amz-checksum-sha256": checksum}
        return self._requests.presign("PUT", key, headers=headers, expires_seconds=expires_seconds)

    def delete(self, key: str) -> None:
        """Delete an object; deleting what is not there is no error."""
        with translated("delete", key):
            self._requests.send("DELETE", key)

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that begins with `prefix`, in order."""
        return (item.key for page in self.pages(prefix) for item in page)

    def pages(self, prefix: str, *, after: str = "") -> Iterator[Listing]:
        """What is known of every object whose key begins with `prefix` and comes behind `after`: in order, by pages."""
        with translated("list", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, StartAfter=after
            ):
                yield [
                    ListedObject(item["Key"], item["Size"], item["LastModified"]) for item in page.get("Contents", [])
                ]

    def uploads_in_flight(self, prefix: str) -> "Iterator[PendingUpload]":
        """The multipart uploads under `prefix` that were neither completed nor aborted."""
        with translated("list uploads", prefix):
            # Not by the server's prefix: MinIO takes that for a whole key, and lists nothing for what keys begin with.
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket):
                for item in page.get("Uploads", []):
                    if item["Key"].startswith(prefix):
                        yield PendingUpload(item["Key"], item["UploadId"], item["Initiated"])

    def abort_uploads(self, prefix: str, *, stale: "Callable[[PendingUpload], bool]" = lambda _upload: True) -> int:
        """Abort multipart uploads in flight under `prefix` that are `stale`; returns how many there were."""
        pending = [upload for upload in self.uploads_in_flight(prefix) if stale(upload)]
        for upload in pending:
            # Somebody else may have ended it meanwhile.
            with contextlib.suppress(ObjectMissing), translated("abort the upload of", upload.key):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)
        return len(pending)

    def presigned_url(self, key: str, *, expires_seconds: int, filename: str) -> str:
        """A URL that reads the object without credentials until it expires, and saves it as `filename`."""
        return self._client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self.bucket,
                "Key": key,
                "ResponseContentDisposition": f'attachment; filename="{filename}"',
            },
            ExpiresIn=expires_seconds,
        )


class ObjectBody:
    """An object that is being read: iterate for chunks of up to 1 MiB.

    Raises ObjectStoreUnavailable when the connection breaks before `size` bytes came.
    """

    def __init__(self, key: str, size: int, content_type: str, body: StreamingBody) -> None:
        self.key = key
        self.size = size
        self.content_type = content_type
        self._body = body

    @classmethod
    def of(cls, key: str, answer: AWSResponse) -> Self:
        """The body of an answer that is still to be read."""
        size = int(answer.headers["Content-Length"])
        return cls(key, size, answer.headers.get("Content-Type", ""), StreamingBody(answer.raw, size))

    def __iter__(self) -> Iterator[bytes]:
        with translated("read", self.key):
            while chunk := self._body.read(_READ_BYTES):
                yield chunk

    def close(self) -> None:
        """Give the connection up."""
        self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
