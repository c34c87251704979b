"""The PostgreSQL and the S3 server of a test session, by the variable STOWAGE_TEST_BACKEND.

`embedded`, the default: from packages, with their state in a temporary directory.

`environment`: whatever is there. STOWAGE_TEST_DATABASE_URL is the maintenance database of a PostgreSQL, as a role that
may create databases; S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY are an S3 server's, with keys that may make buckets
and users.

`containers`: by testcontainers, on docker or podman. STOWAGE_TEST_POSTGRES_IMAGE and STOWAGE_TEST_S3_IMAGE are by
default those of infra/compose.yaml; `make stand-ins` makes images for machines that reach no image registry.
"""

import contextlib
import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from infra.local import servers
from infra.provision.server import Credentials, Server
from tests.containers.engine import engine
from tests.ports import stack_ports

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_POSTGRES_IMAGE = "docker.io/library/postgres:18"
_S3_IMAGE = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"
_POSTGRES_PORT, _S3_PORT = 5432, 9000
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Servers:
    """The servers of a test session. Databases and buckets have `token` in their names: others may use them as well."""

    maintenance_url: str
    s3_endpoint: str
    access_key: str
    secret_key: str
    token: str

    @property
    def template(self) -> str:
        """The database that has the schema and nothing else."""
        return f"template-{self.token}"

    def s3(self, bucket: str) -> Server:
        """The S3 server with one bucket."""
        return Server(self.s3_endpoint, bucket, "us-east-1", Credentials(self.access_key, self.secret_key))


def chosen_servers(s3_address: str = "127.0.0.1") -> AbstractContextManager[Servers]:
    """The servers that the variable chooses, while the context is open; their databases and buckets are none yet.

    An embedded S3 server listens on `s3_address`, which is for clients on other machines.
    """
    chosen = os.environ.get("STOWAGE_TEST_BACKEND", "embedded")
    if chosen not in _KINDS:
        raise ValueError(f"STOWAGE_TEST_BACKEND is {chosen}; it may be {', '.join(_KINDS)}")
    return _KINDS[chosen](s3_address)


@contextlib.contextmanager
def _embedded(s3_address: str) -> Iterator[Servers]:
    access_key, secret_key = "test-access", servers.new_secret()
    with tempfile.TemporaryDirectory(prefix="stowage-test-", ignore_cleanup_errors=True) as home:
        state = Path(home)
        with (
            servers.postgres(state / "postgres") as url,
            servers.s3_server(
                state / "s3",
                stack_ports(),
                access_key=access_key,
                secret_key=secret_key,
                console_password=servers.new_secret(),
                address=s3_address,
            ) as endpoint,
        ):
            yield Servers(url, endpoint, access_key, secret_key, _token())


@contextlib.contextmanager
def _environment(_s3_address: str) -> Iterator[Servers]:
    names = ("STOWAGE_TEST_DATABASE_URL", "S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ValueError(f"STOWAGE_TEST_BACKEND=environment needs {', '.join(missing)} as well")
    url, endpoint, access_key, secret_key = (os.environ[name] for name in names)
    yield Servers(url, endpoint, access_key, secret_key, _token())


@contextlib.contextmanager
def _containers(_s3_address: str) -> Iterator[Servers]:
    access_key, password = "testaccess", secrets.token_hex(16)
    with engine() as found, contextlib.ExitStack() as stack:
        os.environ.update(found.environment)  # testcontainers reads its own there
        if found.is_podman:
            os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
            os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own, at import
            from testcontainers.core.container import DockerContainer  # reads the variables above

        postgres = DockerContainer(os.environ.get("STOWAGE_TEST_POSTGRES_IMAGE", _POSTGRES_IMAGE))
        postgres.with_env("POSTGRES_PASSWORD", password).with_exposed_ports(_POSTGRES_PORT)
        postgres.with_command(["postgres", "-c", "fsync=off", "-c", "max_connections=200"])
        s3 = DockerContainer(os.environ.get("STOWAGE_TEST_S3_IMAGE", _S3_IMAGE))
        s3.with_env("MINIO_ROOT_USER", access_key).with_env("MINIO_ROOT_PASSWORD", password)
        s3.with_command(["server", "/data"]).with_exposed_ports(_S3_PORT)
        for container in (postgres, s3):
            stack.enter_context(container)
        url = f"postgresql://postgres:{password}@{_address(postgres, _POSTGRES_PORT)}/postgres"
        yield Servers(url, f"http://{_address(s3, _S3_PORT)}", access_key, password, _token())


def _address(container: "DockerContainer", port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


async def until_up(maintenance_url: str) -> None:
    """Return when PostgreSQL takes connections: a container's does not at once."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            connection = await asyncpg.connect(maintenance_url)
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)  # noqa: ASYNC251  # nothing else goes on yet
        else:
            await connection.close()
            return


def _token() -> str:
    return secrets.token_hex(4)


_KINDS: dict[str, Callable[[str], AbstractContextManager[Servers]]] = {
    "embedded": _embedded,
    "environment": _environment,
    "containers": _containers,
}
