"""Objects in one request: conditions, checksums, ranges, metadata, copies, lists."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from tests.contract_s3.conftest import Contract, checksum, status_of


def test_conditional_create_does_not_replace(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="once/a", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        contract.client.put_object(Bucket=contract.bucket, Key="once/a", Body=b"second", IfNoneMatch="*")
    assert status_of(refused.value) == 412
    assert contract.body("once/a") == b"first"


def test_of_conditional_creates_at_once_one_wins(contract: Contract) -> None:
    def create(number: int) -> int | None:
        try:
            contract.client.put_object(
                Bucket=contract.bucket, Key="once/race", Body=b"%d" % number * 100_000, IfNoneMatch="*"
            )
        except ClientError as error:
            if status_of(error) not in (409, 412):
                raise
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert contract.body("once/race") == b"%d" % winners[0] * 100_000


def test_conditional_create_is_possible_again_after_deletion(contract: Contract) -> None:
    for content in (b"first", b"second"):
        contract.client.put_object(Bucket=contract.bucket, Key="once/b", Body=content, IfNoneMatch="*")
        assert contract.body("once/b") == content
        contract.client.delete_object(Bucket=contract.bucket, Key="once/b")


def test_right_checksum_is_accepted(contract: Contract) -> None:
    contract.client.put_object(
        Bucket=contract.bucket, Key="sums/right", Body=b"content", ChecksumSHA256=checksum(b"content")
    )
    assert contract.body("sums/right") == b"content"


def test_wrong_checksum_is_refused_and_leaves_nothing(contract: Contract) -> None:
    with pytest.raises(ClientError) as refused:
        contract.client.put_object(
            Bucket=contract.bucket, Key="sums/wrong", Body=b"content", ChecksumSHA256=checksum(b"other")
        )
    assert status_of(refused.value) == 400
    assert contract.missing("sums/wrong")


def test_wrong_checksum_leaves_the_object_that_is_there(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="sums/kept", Body=b"kept")
    with pytest.raises(ClientError):
        contract.client.put_object(
            Bucket=contract.bucket, Key="sums/kept", Body=b"content", ChecksumSHA256=checksum(b"other")
        )
    assert contract.body("sums/kept") == b"kept"


@pytest.mark.parametrize(
    ("asked", "answered", "content"),
    [
        ("bytes=4-", "bytes 4-9/10", b"456789"),
        ("bytes=2-3", "bytes 2-3/10", b"23"),
        ("bytes=8-99", "bytes 8-9/10", b"89"),
        ("bytes=-3", "bytes 7-9/10", b"789"),
    ],
)
def test_range_gives_that_part(contract: Contract, asked: str, answered: str, content: bytes) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="ranges/a", Body=b"0123456789")
    answer = contract.client.get_object(Bucket=contract.bucket, Key="ranges/a", Range=asked)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert (answer["ContentRange"], answer["Body"].read()) == (answered, content)


def test_range_behind_the_end_is_refused(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="ranges/b", Body=b"0123456789")
    with pytest.raises(ClientError) as refused:
        contract.client.get_object(Bucket=contract.bucket, Key="ranges/b", Range="bytes=10-")
    assert status_of(refused.value) == 416


def test_metadata_and_content_type_come_back(contract: Contract) -> None:
    metadata = {"slug": "hello", "version": "1.0.0", "content-digest": "sha256:" + "0" * 64}
    contract.client.put_object(
        Bucket=contract.bucket, Key="meta/a", Body=b"0123456789", ContentType="application/zstd", Metadata=metadata
    )
    found = contract.client.head_object(Bucket=contract.bucket, Key="meta/a")
    assert (found["ContentLength"], found["ContentType"], found["Metadata"]) == (10, "application/zstd", metadata)


def test_copy_gives_the_target_its_own_metadata(contract: Contract) -> None:
    contract.client.put_object(
        Bucket=contract.bucket, Key="copy/source", Body=b"content", ContentType="text/plain", Metadata={"a": "1"}
    )
    _copy(contract, "copy/source", "copy/target")
    found = contract.client.head_object(Bucket=contract.bucket, Key="copy/target")
    assert (found["ContentType"], found["Metadata"]) == ("application/gzip", {"b": "2"})
    assert contract.body("copy/target") == b"content"
    source = contract.client.head_object(Bucket=contract.bucket, Key="copy/source")
    assert (source["ContentType"], source["Metadata"]) == ("text/plain", {"a": "1"})


def test_copy_onto_itself_changes_the_metadata_alone(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="copy/self", Body=b"content", Metadata={"a": "1"})
    _copy(contract, "copy/self", "copy/self")
    found = contract.client.head_object(Bucket=contract.bucket, Key="copy/self")
    assert (found["ContentType"], found["Metadata"]) == ("application/gzip", {"b": "2"})
    assert contract.body("copy/self") == b"content"


def test_copy_of_what_is_not_there_is_refused(contract: Contract) -> None:
    with pytest.raises(ClientError) as refused:
        _copy(contract, "copy/nowhere", "copy/anywhere")
    assert status_of(refused.value) == 404
    assert contract.missing("copy/anywhere")


def test_list_is_in_order_by_pages_and_of_its_prefix_alone(contract: Contract) -> None:
    keys = [f"list/{number:02}" for number in range(7)]
    for key in (*reversed(keys), "listed-elsewhere"):
        contract.client.put_object(Bucket=contract.bucket, Key=key, Body=b"")
    pages = list(
        contract.client.get_paginator("list_objects_v2").paginate(
            Bucket=contract.bucket, Prefix="list/", PaginationConfig={"PageSize": 3}
        )
    )
    assert [[item["Key"] for item in page["Contents"]] for page in pages] == [keys[:3], keys[3:6], keys[6:]]
    after = contract.client.list_objects_v2(Bucket=contract.bucket, Prefix="list/", StartAfter=keys[4])
    assert [item["Key"] for item in after["Contents"]] == keys[5:]


def test_what_was_written_is_read_and_listed_at_once(contract: Contract) -> None:
    for number in range(20):
        key = f"consistent/{number}"
        contract.client.put_object(Bucket=contract.bucket, Key=key, Body=b"old")
        contract.client.put_object(Bucket=contract.bucket, Key=key, Body=b"new")
        assert contract.body(key) == b"new"
        listed = contract.client.list_objects_v2(Bucket=contract.bucket, Prefix=key)
        assert [item["Key"] for item in listed["Contents"]] == [key]
        contract.client.delete_object(Bucket=contract.bucket, Key=key)
        assert contract.missing(key)


def test_delete_of_what_is_not_there_is_no_error(contract: Contract) -> None:
    contract.client.delete_object(Bucket=contract.bucket, Key="nowhere")


def test_read_of_what_is_not_there_is_said_so(contract: Contract) -> None:
    with pytest.raises(ClientError) as refused:
        contract.client.get_object(Bucket=contract.bucket, Key="nowhere")
    assert (status_of(refused.value), refused.value.response["Error"]["Code"]) == (404, "NoSuchKey")


def _copy(contract: Contract, source: str, target: str) -> None:
    contract.client.copy_object(
        Bucket=contract.bucket,
        Key=target,
        CopySource={"Bucket": contract.bucket, "Key": source},
        ContentType="application/gzip",
        Metadata={"b": "2"},
        MetadataDirective="REPLACE",
    )
