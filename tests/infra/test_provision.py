"""`python -m infra.provision` as people and set-up jobs call it; what users may do is in tests/contract_s3."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from minio import Minio

from infra.provision.policies import RIGHTS
from infra.provision.server import Credentials, Server
from infra.provision.users import users_of
from tests.ports import free_port
from tests.servers import Servers


@pytest.fixture
def variables(servers: Servers) -> Iterator[dict[str, str]]:
    """What a set-up job has in its environment, for a bucket that is not there yet."""
    bucket = f"provision-{secrets.token_hex(6)}"
    keys = {
        f"STOWAGE_{service.upper()}_S3_{kind}": f"{service if kind == 'ACCESS_KEY' else ''}{secrets.token_hex(8)}"
        for service in RIGHTS
        for kind in ("ACCESS_KEY", "SECRET_KEY")
    }
    yield {
        "STOWAGE_S3_ENDPOINT": servers.s3_endpoint,
        "STOWAGE_S3_ACCESS_KEY": servers.access_key,
        "STOWAGE_S3_SECRET_KEY": servers.secret_key,
        "STOWAGE_S3_BUCKET": bucket,
        **keys,
    }
    client = _client(servers, servers.access_key, servers.secret_key)
    if client.bucket_exists(bucket):
        administrator = Credentials(servers.access_key, servers.secret_key)
        users = users_of(Server(servers.s3_endpoint, bucket, "us-east-1", administrator))
        for service in RIGHTS:
            users.remove(f"{bucket}-{service}", _keys(keys, service))
        client.remove_bucket(bucket)


def test_bucket_and_users_are_made_once_and_renewed(servers: Servers, variables: dict[str, str]) -> None:
    assert _provision(variables).stdout.splitlines()[0] == f"bucket {variables['STOWAGE_S3_BUCKET']}: made"
    again = _provision(variables)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[0] == f"bucket {variables['STOWAGE_S3_BUCKET']}: there"
    for service in RIGHTS:
        keys = _keys(variables, service)
        assert _client(servers, keys.access_key, keys.secret_key).bucket_exists(variables["STOWAGE_S3_BUCKET"])
        assert keys.secret_key not in again.stdout


def test_secrets_come_from_files(variables: dict[str, str], tmp_path: Path) -> None:
    for name in [name for name in variables if name.endswith("_KEY")]:
        (tmp_path / name).write_text(variables.pop(name) + "\n")
        variables[f"{name}_FILE"] = str(tmp_path / name)
    done = _provision(variables)
    variables |= {path.name: path.read_text().strip() for path in tmp_path.iterdir()}
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_variable_is_named(variables: dict[str, str]) -> None:
    del variables["STOWAGE_RUNNER_S3_SECRET_KEY"]
    _refused(variables, code=2, sentence="STOWAGE_RUNNER_S3_SECRET_KEY must be set")


def test_keys_that_may_not_administer_are_refused(variables: dict[str, str]) -> None:
    variables["STOWAGE_S3_SECRET_KEY"] = "wrong"
    _refused(variables, code=1, sentence="an administrator's?")


def test_server_that_is_not_there_is_named(variables: dict[str, str]) -> None:
    variables["STOWAGE_S3_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    _refused(variables, code=1, sentence=variables["STOWAGE_S3_ENDPOINT"])


def test_name_that_no_bucket_can_have_is_refused(variables: dict[str, str]) -> None:
    _refused({**variables, "STOWAGE_S3_BUCKET": "No_Bucket"}, code=1, sentence="can't make the bucket No_Bucket")


@pytest.mark.parametrize("endpoint", ["s3:9000", "ftp://s3", "http://s3/path"])
def test_what_is_no_url_of_a_server_is_refused(variables: dict[str, str], endpoint: str) -> None:
    variables["STOWAGE_S3_ENDPOINT"] = endpoint
    _refused(variables, code=1, sentence="is no URL of an S3 server")


def test_policies_can_be_had_for_a_server_without_users() -> None:
    done = _provision({"STOWAGE_S3_BUCKET": "elsewhere"}, "--policies")
    policies = json.loads(done.stdout)
    assert set(policies) == set(RIGHTS)
    assert "arn:aws:s3:::elsewhere/artifacts/*" in json.dumps(policies["registry"])


def _provision(variables: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "infra.provision", *arguments],
        env=dict(variables),
        capture_output=True,
        text=True,
        check=False,
    )


def _refused(variables: Mapping[str, str], *, code: int, sentence: str) -> None:
    done = _provision(variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert variables["STOWAGE_REGISTRY_S3_SECRET_KEY"] not in done.stderr


def _keys(variables: Mapping[str, str], service: str) -> Credentials:
    prefix = f"STOWAGE_{service.upper()}_S3"
    return Credentials(variables[f"{prefix}_ACCESS_KEY"], variables[f"{prefix}_SECRET_KEY"])


def _client(servers: Servers, access_key: str, secret_key: str) -> Minio:
    endpoint = servers.s3_endpoint.removeprefix("http://")
    return Minio(endpoint, access_key=access_key, secret_key=secret_key, secure=False)
