"""The set-up job of Compose, on servers of its own: it makes a role that all databases of a server would share."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import asyncpg
import pytest

from infra.credentials import SERVICES
from infra.local import servers
from infra.provision.server import Credentials, Server, works
from tests.ports import stack_ports

_KEYS = {"access_key": "administrator", "secret_key": "administrators-secret"}


@pytest.fixture
def variables() -> Iterator[dict[str, str]]:
    """What Compose gives the job, for servers that are empty."""
    with (
        tempfile.TemporaryDirectory(prefix="stowage-test-", ignore_cleanup_errors=True) as state,
        servers.postgres(Path(state) / "postgres") as url,
        servers.s3_server(Path(state) / "s3", stack_ports(), console_password="console", **_KEYS) as endpoint,
    ):
        yield {
            "STOWAGE_DATABASE_URL": url,
            "STOWAGE_S3_ENDPOINT": endpoint,
            "STOWAGE_S3_ACCESS_KEY": _KEYS["access_key"],
            "STOWAGE_S3_SECRET_KEY": _KEYS["secret_key"],
        }


async def test_services_get_credentials_that_work_and_are_not_an_administrators(
    variables: dict[str, str], tmp_path: Path
) -> None:
    files = tmp_path / "credentials"
    done = _set_up(variables, files)
    assert done.returncode == 0, done.stderr
    for service in SERVICES:
        connection = await asyncpg.connect(_read(files, service, "database-url"))
        try:
            assert await connection.fetchval("SELECT count(*) FROM registry.tokens") == 3
            assert not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        finally:
            await connection.close()
        assert works(_server(variables), _s3(files, service))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files.rglob("*") if path.is_file())
    secrets = [path.read_text().strip() for path in files.rglob("*") if path.is_file()]
    assert not any(secret in done.stdout + done.stderr for secret in secrets if not secret.startswith("stowage"))

    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert _set_up(variables, files).returncode == 0
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


async def test_what_was_removed_is_renewed(variables: dict[str, str], tmp_path: Path) -> None:
    files = tmp_path / "credentials"
    assert _set_up(variables, files).returncode == 0
    old_key, old_url = _s3(files, "runner"), _read(files, "runner", "database-url")
    (files / "runner" / "s3-secret-key").unlink()
    (files / "registry" / "database-password").unlink()
    assert _set_up(variables, files).returncode == 0

    assert _s3(files, "runner") != old_key
    assert works(_server(variables), _s3(files, "runner"))
    assert not works(_server(variables), old_key)
    urls = {_read(files, service, "database-url") for service in SERVICES}
    assert len(urls) == 1
    assert old_url not in urls
    await (await asyncpg.connect(urls.pop())).close()


def test_variable_that_is_missing_is_named(tmp_path: Path) -> None:
    done = _set_up({}, tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "setup: STOWAGE_DATABASE_URL must be set, or a file that STOWAGE_DATABASE_URL_FILE names\n",
    )


def _set_up(variables: Mapping[str, str], files: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "infra.setup", str(files)],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def _read(files: Path, service: str, name: str) -> str:
    return (files / service / name).read_text().strip()


def _s3(files: Path, service: str) -> Credentials:
    return Credentials(_read(files, service, "s3-access-key"), _read(files, service, "s3-secret-key"))


def _server(variables: Mapping[str, str]) -> Server:
    administrator = Credentials(_KEYS["access_key"], _KEYS["secret_key"])
    return Server(variables["STOWAGE_S3_ENDPOINT"], "stowage", "us-east-1", administrator)
