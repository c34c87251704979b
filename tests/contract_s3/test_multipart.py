"""Uploads in parts: nothing is visible before the end, parts are checked, what was begun can be found and aborted."""

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from tests.contract_s3.conftest import Contract, checksum, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import MultipartUploadTypeDef

_MIB = 1024 * 1024
_PARTS = (b"a" * 5 * _MIB, b"b" * 5 * _MIB, b"end")


def test_parts_become_an_object_at_the_end_and_not_before(contract: Contract) -> None:
    key = "parts/whole"
    upload = _begin(contract, key)
    etags = [_part(contract, key, upload, number, data) for number, data in enumerate(_PARTS, 1)]
    assert contract.missing(key)
    _complete(contract, key, upload, etags)
    assert contract.body(key) == b"".join(_PARTS)
    found = contract.client.head_object(Bucket=contract.bucket, Key=key)
    assert (found["ContentLength"], found["ContentType"], found["Metadata"]) == (
        10 * _MIB + 3,
        "application/zstd",
        {"slug": "hello"},
    )


def test_range_crosses_the_border_of_parts(contract: Contract) -> None:
    key = "parts/range"
    upload = _begin(contract, key)
    _complete(contract, key, upload, [_part(contract, key, upload, n, data) for n, data in enumerate(_PARTS, 1)])
    border = 5 * _MIB
    answer = contract.client.get_object(Bucket=contract.bucket, Key=key, Range=f"bytes={border - 2}-{border + 1}")
    assert answer["Body"].read() == b"aabb"


def test_object_of_parts_is_copied_whole(contract: Contract) -> None:
    key = "parts/copied"
    upload = _begin(contract, key)
    _complete(contract, key, upload, [_part(contract, key, upload, n, data) for n, data in enumerate(_PARTS, 1)])
    contract.client.copy_object(
        Bucket=contract.bucket,
        Key="parts/copy",
        CopySource={"Bucket": contract.bucket, "Key": key},
        ContentType="application/gzip",
        Metadata={},
        MetadataDirective="REPLACE",
    )
    assert contract.body("parts/copy") == b"".join(_PARTS)


def test_part_with_a_wrong_checksum_is_refused(contract: Contract) -> None:
    upload = _begin(contract, "parts/wrong")
    with pytest.raises(ClientError) as refused:
        contract.client.upload_part(
            Bucket=contract.bucket,
            Key="parts/wrong",
            UploadId=upload,
            PartNumber=1,
            Body=b"content",
            ChecksumSHA256=checksum(b"other"),
        )
    assert status_of(refused.value) == 400
    _abort(contract, "parts/wrong", upload)


def test_part_sent_again_replaces_the_first(contract: Contract) -> None:
    key = "parts/again"
    upload = _begin(contract, key)
    _part(contract, key, upload, 1, b"first")
    _complete(contract, key, upload, [_part(contract, key, upload, 1, b"second")])
    assert contract.body(key) == b"second"


def test_aborted_upload_leaves_nothing_and_can_not_go_on(contract: Contract) -> None:
    key = "parts/aborted"
    upload = _begin(contract, key)
    etag = _part(contract, key, upload, 1, b"content")
    _abort(contract, key, upload)
    assert _in_flight(contract, "parts/aborted") == []
    with pytest.raises(ClientError) as refused:
        _complete(contract, key, upload, [etag])
    assert (status_of(refused.value), refused.value.response["Error"]["Code"]) == (404, "NoSuchUpload")
    assert contract.missing(key)


def test_uploads_in_flight_are_listed_with_their_begin(contract: Contract) -> None:
    uploads = {key: _begin(contract, key) for key in ("flight/a", "flight/b", "flown/c")}
    listed = [item for item in _listed(contract) if item["Key"].startswith("fl")]
    assert {item["Key"]: item["UploadId"] for item in listed} == uploads
    assert all(item["Initiated"].tzinfo for item in listed)
    for key, upload in uploads.items():
        _abort(contract, key, upload)
    assert _in_flight(contract, "fl") == []


def test_two_uploads_of_one_key_do_not_mix(contract: Contract) -> None:
    key = "parts/two"
    first, second = _begin(contract, key), _begin(contract, key)
    etags = {upload: [_part(contract, key, upload, 1, upload.encode() * 100)] for upload in (first, second)}
    _complete(contract, key, first, etags[first])
    assert contract.body(key) == first.encode() * 100
    _complete(contract, key, second, etags[second])
    assert contract.body(key) == second.encode() * 100


def _begin(contract: Contract, key: str) -> str:
    return contract.client.create_multipart_upload(
        Bucket=contract.bucket,
        Key=key,
        ContentType="application/zstd",
        Metadata={"slug": "hello"},
        ChecksumAlgorithm="SHA256",
    )["UploadId"]


def _part(contract: Contract, key: str, upload: str, number: int, data: bytes) -> dict[str, str]:
    answer = contract.client.upload_part(
        Bucket=contract.bucket,
        Key=key,
        UploadId=upload,
        PartNumber=number,
        Body=data,
        ChecksumSHA256=checksum(data),
    )
    return {"ETag": answer["ETag"], "ChecksumSHA256": checksum(data)}


def _complete(contract: Contract, key: str, upload: str, parts: list[dict[str, str]]) -> None:
    numbered = [{**part, "PartNumber": number} for number, part in enumerate(parts, 1)]
    contract.client.complete_multipart_upload(
        Bucket=contract.bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": numbered},  # type: ignore[typeddict-item]
    )


def _abort(contract: Contract, key: str, upload: str) -> None:
    contract.client.abort_multipart_upload(Bucket=contract.bucket, Key=key, UploadId=upload)


def _in_flight(contract: Contract, prefix: str) -> list[str]:
    return [item["Key"] for item in _listed(contract) if item["Key"].startswith(prefix)]


def _listed(contract: Contract) -> "list[MultipartUploadTypeDef]":
    """All of the bucket: MinIO knows no prefixes here."""
    pages = contract.client.get_paginator("list_multipart_uploads").paginate(Bucket=contract.bucket)
    return [item for page in pages for item in page.get("Uploads", [])]
