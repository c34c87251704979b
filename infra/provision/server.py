"""The S3 server that is made ready, and who may make it so."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

_SECONDS = 10.0
_USABLE_SECONDS = 30.0
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class ProvisionError(Exception):
    """The S3 server could not be made ready; the message says why and what to do."""


class _Unreachable(ProvisionError):
    """Nobody answers there, or not yet."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys of one user."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, …)"


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 server, the bucket that it is to have, and an administrator's keys."""

    endpoint: str
    bucket: str
    region: str
    administrator: Credentials

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
            raise ProvisionError(
                f"{self.endpoint} is no URL of an S3 server, such as http://s3:9000 or https://s3.example"
            )

    @property
    def host(self) -> str:
        """The host, with its port."""
        return urlsplit(self.endpoint).netloc

    @property
    def secure(self) -> bool:
        """Whether it is spoken to by TLS."""
        return self.endpoint.startswith("https:")


def connections() -> urllib3.PoolManager:
    """Connections that trust what the services trust (AWS_CA_BUNDLE), and give up soon."""
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=_SECONDS, read=_SECONDS),
        retries=urllib3.Retry(total=3, backoff_factor=0.2),
        ca_certs=os.environ.get("AWS_CA_BUNDLE") or certifi.where(),
    )


def make_bucket(server: Server, *, wait_seconds: float = 0) -> bool:
    """Make the bucket; False where it was there. Waits so long for a server that can't be reached yet."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return _make_bucket(server)
        except _Unreachable:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def _make_bucket(server: Server) -> bool:
    client = client_of(server, server.administrator)
    with _explained(server, f"make the bucket {server.bucket}"):
        if client.bucket_exists(server.bucket):
            return False
        try:
            client.make_bucket(server.bucket, location=server.region)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":  # another set-up was faster
                raise
            return False
    return True


@contextlib.contextmanager
def _explained(server: Server, doing: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Unreachable(f"{server.endpoint} is not ready: {error.code}: {error.message}") from error
        hint = (
            " Are STOWAGE_S3_ACCESS_KEY and STOWAGE_S3_SECRET_KEY an administrator's?" if error.code in _REFUSED else ""
        )
        raise ProvisionError(f"{server.endpoint} refused to {doing}: {error.code}: {error.message}{hint}") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise _Unreachable(f"{server.endpoint} could not be asked to {doing}: {error}") from error
    except ValueError as error:  # the client's own, before it asks: for example of a bucket's name
        raise ProvisionError(f"can't {doing}: {error}") from error


def works(server: Server, credentials: Credentials) -> bool:
    """Whether a user's keys are known and may ask for the bucket."""
    try:
        return client_of(server, credentials).bucket_exists(server.bucket)
    except S3Error as error:
        if error.code in _REFUSED:
            return False
        raise ProvisionError(f"{server.endpoint}: {error.code}: {error.message}") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise _Unreachable(f"{server.endpoint} can't be reached: {error}") from error


def until_usable(server: Server, user: str, credentials: Credentials) -> None:
    """Return once a user's keys work: a server of several parts needs a moment to tell all of them."""
    deadline = time.monotonic() + _USABLE_SECONDS
    while not works(server, credentials):
        if time.monotonic() > deadline:
            raise ProvisionError(
                f"{server.endpoint} still refuses the keys of {user} after {_USABLE_SECONDS:.0f} seconds"
            )
        time.sleep(0.1)


def client_of(server: Server, credentials: Credentials) -> Minio:
    """A client of the server with a user's keys."""
    return Minio(
        server.host,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        secure=server.secure,
        region=server.region,
        http_client=connections(),
    )
