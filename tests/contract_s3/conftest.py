"""The server under contract, and a bucket of this session's own in it."""

import base64
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from mypy_boto3_s3 import S3Client

from infra.provision.server import Credentials, Server, make_bucket


@dataclass(frozen=True)
class Contract:
    """A server, a bucket in it that nobody else uses, and a client with an administrator's keys."""

    server: Server
    client: S3Client

    @property
    def bucket(self) -> str:
        return self.server.bucket

    def client_of(self, credentials: Credentials) -> S3Client:
        """A client of another user; it tries once, and sends no checksums that were not asked for."""
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            region_name=self.server.region,
            config=Config(
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def body(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def missing(self, key: str) -> bool:
        """Whether there is no such object; any other refusal raises."""
        try:
            self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if status_of(error) == 404:
                return True
            raise
        return False


@pytest.fixture(scope="session")
def contract(request: pytest.FixtureRequest) -> Iterator[Contract]:
    """The server that S3_ENDPOINT names, else that of all tests, with an empty bucket."""
    bucket = f"stowage-contract-{secrets.token_hex(6)}"
    if "S3_ENDPOINT" in os.environ:
        endpoint, keys = os.environ["S3_ENDPOINT"], (os.environ["S3_ACCESS_KEY"], os.environ["S3_SECRET_KEY"])
    else:
        servers = request.getfixturevalue("servers")
        endpoint, keys = servers.s3_endpoint, (servers.access_key, servers.secret_key)
    server = Server(endpoint, bucket, os.environ.get("S3_REGION", "us-east-1"), Credentials(*keys))
    assert make_bucket(server, wait_seconds=60)
    contract = Contract(server, Contract(server, None).client_of(server.administrator))  # type: ignore[arg-type]
    yield contract
    for upload in contract.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        contract.client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in contract.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            contract.client.delete_object(Bucket=bucket, Key=item["Key"])
    contract.client.delete_bucket(Bucket=bucket)


def checksum(data: bytes) -> str:
    """SHA-256 as S3 has it in headers."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def status_of(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
