"""Users of the services: each may do what it needs below its prefixes, and nothing else.

Runs wherever users can be made in a way that infra.provision knows: on MinIO, its forks, and SeaweedFS.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from mypy_boto3_s3 import S3Client

from infra.provision.policies import RIGHTS
from infra.provision.server import Credentials, ProvisionError
from infra.provision.users import ensure_users, users_of
from tests.contract_s3.conftest import Contract, status_of

_PREFIXES = ("artifacts/", "uploads/", "audit/", "logs/builds/", "logs/runs/", "outputs/", "else/")


@pytest.fixture(scope="module")
def users(contract: Contract) -> Iterator[dict[str, Credentials]]:
    """A user for each service."""
    try:
        kind = users_of(contract.server)
    except ProvisionError as error:
        pytest.skip(f"this server has no users that can be made from here: {error}")
    made = {service: _credentials() for service in RIGHTS}
    ensure_users(contract.server, made)
    for prefix in _PREFIXES:
        contract.client.put_object(Bucket=contract.bucket, Key=f"{prefix}there", Body=b"there")
    yield made
    for service, credentials in made.items():
        kind.remove(f"{contract.bucket}-{service}", credentials)


@pytest.mark.parametrize("service", RIGHTS)
@pytest.mark.parametrize("prefix", _PREFIXES)
def test_service_may_do_what_it_needs_below_its_prefixes_alone(
    contract: Contract, users: dict[str, Credentials], service: str, prefix: str
) -> None:
    rights, client, bucket = RIGHTS[service], contract.client_of(users[service]), contract.bucket
    mine = f"{prefix}{service}"

    assert _may(lambda: client.get_object(Bucket=bucket, Key=f"{prefix}there")) == (prefix in rights.reads)
    assert _may(lambda: client.head_object(Bucket=bucket, Key=f"{prefix}there")) == (prefix in rights.reads)
    adds = prefix in rights.adds
    assert _may(lambda: client.put_object(Bucket=bucket, Key=mine, Body=b"", IfNoneMatch="*")) == adds
    assert _may(lambda: _upload_and_abort(client, bucket, mine)) == adds
    contract.client.put_object(Bucket=bucket, Key=mine, Body=b"")
    assert _may(lambda: client.delete_object(Bucket=bucket, Key=mine)) == (prefix in rights.removes)
    assert contract.missing(mine) == (prefix in rights.removes)


def test_nobody_but_the_registry_can_touch_an_artifact(contract: Contract, users: dict[str, Credentials]) -> None:
    key, bucket = "artifacts/sha256/ab/abcd.tgz", contract.bucket
    contract.client.put_object(Bucket=bucket, Key=key, Body=b"artifact")
    contract.client.put_object(Bucket=bucket, Key="outputs/evil", Body=b"evil")
    for service in ("builder", "runner"):
        client = contract.client_of(users[service])
        source = {"Bucket": bucket, "Key": "outputs/evil"}
        assert not _may(lambda c=client: c.put_object(Bucket=bucket, Key=key, Body=b"evil"))  # type: ignore[misc]
        assert not _may(lambda c=client, s=source: c.copy_object(Bucket=bucket, Key=key, CopySource=s))  # type: ignore[misc]
        assert not _may(lambda c=client: c.delete_object(Bucket=bucket, Key=key))  # type: ignore[misc]
        assert not _may(lambda c=client: _upload_and_abort(c, bucket, key))  # type: ignore[misc]
    assert contract.body(key) == b"artifact"


@pytest.mark.parametrize("service", RIGHTS)
def test_service_may_list_and_ask_for_the_bucket(
    contract: Contract, users: dict[str, Credentials], service: str
) -> None:
    client = contract.client_of(users[service])
    assert _may(lambda: client.head_bucket(Bucket=contract.bucket))
    assert _may(lambda: client.list_objects_v2(Bucket=contract.bucket, Prefix=RIGHTS[service].adds[0]))
    assert _may(lambda: client.list_multipart_uploads(Bucket=contract.bucket))


@pytest.mark.parametrize("service", RIGHTS)
def test_service_administers_nothing(contract: Contract, users: dict[str, Credentials], service: str) -> None:
    client = contract.client_of(users[service])
    assert not _may(lambda: client.create_bucket(Bucket=f"{contract.bucket}-own"))
    assert not _may(lambda: client.delete_bucket(Bucket=contract.bucket))
    assert not _may(lambda: client.put_bucket_policy(Bucket=contract.bucket, Policy="{}"))
    with pytest.raises(ProvisionError, match="that these keys may use"):
        users_of(replace(contract.server, administrator=users[service]))


def test_making_users_again_renews_their_secrets(contract: Contract, users: dict[str, Credentials]) -> None:
    old = users["builder"]
    new = Credentials(old.access_key, _credentials().secret_key)
    ensure_users(contract.server, {"builder": new})
    assert _may(lambda: contract.client_of(new).head_bucket(Bucket=contract.bucket))
    with pytest.raises(ClientError) as refused:
        contract.client_of(old).head_bucket(Bucket=contract.bucket)
    assert status_of(refused.value) == 403
    ensure_users(contract.server, {"builder": old})


def test_two_services_can_not_be_one_user(contract: Contract) -> None:
    same = _credentials()
    with pytest.raises(ProvisionError, match="the same access key"):
        ensure_users(contract.server, {"builder": same, "runner": same})


def _credentials() -> Credentials:
    return Credentials(f"contract{secrets.token_hex(4)}", secrets.token_urlsafe(24))


def _upload_and_abort(client: S3Client, bucket: str, key: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def _may(action: Callable[[], object]) -> bool:
    """Whether the server does it; a refusal of another kind than 403 raises."""
    try:
        action()
    except ClientError as error:
        if status_of(error) != 403:
            raise
        return False
    return True
