"""Presigned URLs: one request for one object, without credentials, until they expire."""

import http.client
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from tests.contract_s3.conftest import Contract, checksum


def test_presigned_get_reads_and_names_the_file(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="signed/a b", Body=b"content")
    disposition = 'attachment; filename="a.tgz"'
    url = _url(contract, "get_object", Key="signed/a b", ResponseContentDisposition=disposition)
    status, headers, body = _send("GET", url)
    assert (status, body, headers["Content-Disposition"]) == (200, b"content", disposition)
    assert _send("GET", url, headers={"Range": "bytes=3-"})[0::2] == (206, b"tent")


def test_presigned_put_writes_what_was_signed(contract: Contract) -> None:
    url = _url(contract, "put_object", Key="signed/put", ContentType="image/svg+xml")
    assert _send("PUT", url, b"<svg/>", {"Content-Type": "image/svg+xml"})[0] == 200
    found = contract.client.head_object(Bucket=contract.bucket, Key="signed/put")
    assert (found["ContentLength"], found["ContentType"]) == (6, "image/svg+xml")


def test_presigned_put_holds_the_sender_to_the_checksum(contract: Contract) -> None:
    url = _url(contract, "put_object", Key="signed/sum", ChecksumSHA256=checksum(b"content"))
    header = {"x-amz-checksum-sha256": checksum(b"content")}
    assert _send("PUT", url, b"other!!", header)[0] == 400
    assert contract.missing("signed/sum")
    assert _send("PUT", url, b"other!!", {"x-amz-checksum-sha256": checksum(b"other!!")})[0] == 403
    assert _send("PUT", url, b"content", header)[0] == 200
    assert contract.body("signed/sum") == b"content"


def test_presigned_parts_become_an_object(contract: Contract) -> None:
    key = "signed/parts"
    upload = contract.client.create_multipart_upload(Bucket=contract.bucket, Key=key)["UploadId"]
    contents = [b"a" * 5 * 1024 * 1024, b"end"]
    parts = []
    for number, data in enumerate(contents, 1):
        url = _url(contract, "upload_part", Key=key, UploadId=upload, PartNumber=number)
        status, headers, _ = _send("PUT", url, data)
        assert status == 200
        parts.append({"PartNumber": number, "ETag": headers["ETag"]})
    contract.client.complete_multipart_upload(
        Bucket=contract.bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
    )
    assert contract.body(key) == b"".join(contents)


def test_url_is_good_for_its_object_and_method_alone(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="signed/own", Body=b"own")
    contract.client.put_object(Bucket=contract.bucket, Key="signed/other", Body=b"other")
    url = _url(contract, "get_object", Key="signed/own")
    assert _send("GET", url.replace("signed/own", "signed/other"))[0] == 403
    assert _send("PUT", url, b"changed")[0] == 403
    assert _send("DELETE", url)[0] == 403
    assert contract.body("signed/own") == b"own"


def test_url_ends(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="signed/ends", Body=b"content")
    url = contract.client.generate_presigned_url(
        "get_object", Params={"Bucket": contract.bucket, "Key": "signed/ends"}, ExpiresIn=1
    )
    time.sleep(2.5)
    assert _send("GET", url)[0] == 403


def test_without_a_signature_nothing_is_answered(contract: Contract) -> None:
    contract.client.put_object(Bucket=contract.bucket, Key="signed/not", Body=b"content")
    url = _url(contract, "get_object", Key="signed/not").partition("?")[0]
    assert _send("GET", url)[0] == 403
    assert _send("PUT", url, b"changed")[0] == 403
    assert contract.body("signed/not") == b"content"


def _url(contract: Contract, operation: str, **parameters: str | int) -> str:
    return contract.client.generate_presigned_url(
        operation, Params={"Bucket": contract.bucket, **parameters}, ExpiresIn=300
    )


def _send(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    parts = urlsplit(url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=30)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()
