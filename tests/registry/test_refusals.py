"""What is wrong is refused, and leaves no row, no artifact and no upload."""

import asyncio
import gzip
import json
import os
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from libs.common import reading
from libs.common.client import ServiceError
from libs.common.object_uploads import PART_BYTES
from tests.backend import Backend
from tests.registry.bundles import bundle, compress, digest_of, manifest, pack, tar
from tests.registry.running import NOTHING, RunningRegistry, running_registry
from tests.s3_proxy import S3Proxy


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return compress(tar({"manifest.json": json.dumps(manifest()), "main.py": ""}, [member]))


BIG = bundle(files={f"{number}.bin": os.urandom(1024 * 1024) for number in range(20)})  # three parts

WRONG = {
    "empty": (b"", "archive-empty", None),
    "no tarball": (b"hello, this is text", "archive-unsupported-compression", None),
    "truncated gzip": (bundle()[:-9], "archive-truncated", None),
    "truncated tar": (compress(tar({"manifest.json": "{}"})[:700]), "archive-truncated", None),
    "tar without an end": (compress(tar({"manifest.json": "{}"})[:1024]), "archive-missing-end", None),
    "big and damaged in its last part": (BIG[:-100] + bytes(100), None, None),
    "bytes after the end": (bundle() + b"more", "archive-trailing-data", None),
    "path above the root": (hostile("../evil"), "archive-unsafe-path", "../evil"),
    "absolute path": (hostile("/etc/evil"), "archive-unsafe-path", "/etc/evil"),
    "link that leads out": (hostile("evil", tarfile.SYMTYPE, "../../etc/passwd"), "archive-unsafe-link", "evil"),
    "device": (hostile("evil", tarfile.CHRTYPE), "archive-unsupported-member", "evil"),
    "member twice": (hostile("main.py"), "archive-duplicate-member", "main.py"),
    "no manifest": (pack({"main.py": ""}), "invalid-manifest", "manifest.json"),
    "manifest that is no JSON": (pack({"manifest.json": "{", "main.py": ""}), "invalid-manifest", "manifest.json"),
    "manifest with NUL": (
        pack({"manifest.json": json.dumps(manifest(description="\0")), "main.py": ""}),
        "invalid-manifest",
        "manifest.json",
    ),
    "other name": (bundle("other"), "manifest-mismatch", "manifest.json"),
    "other version": (bundle(version="1.0.1"), "manifest-mismatch", "manifest.json"),
    "unknown runtime": (bundle(runtime="cobol"), "invalid-manifest", "manifest.json"),
    "entry of another language": (bundle(entry="main.js"), "invalid-manifest", "manifest.json"),
    "entry above the root": (bundle(entry="../main.py"), "invalid-manifest", "manifest.json"),
    "entry that is missing": (bundle(entry="app.py"), "entry-missing", "app.py"),
    "two entries": (bundle(pythonEntry="app.py"), "invalid-manifest", "manifest.json"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("declares", [False, True], ids=["", "declared"])
async def test_wrong_tarball_is_refused_and_leaves_nothing(
    registry: RunningRegistry, name: str, declares: bool
) -> None:
    data, kind, member = WRONG[name]
    declared = {"digest": digest_of(data)} if data and declares else {}
    answer = await registry.publish(data, force="true", reason="x", **declared)
    assert answer.status == 422
    problem = answer.json
    assert answer.headers["Content-Type"] == "application/problem+json; charset=utf-8"
    assert problem["requestId"] == answer.headers["X-Request-Id"]
    assert problem.get("member") == member
    assert kind is None or problem["type"] == f"urn:stowage:problem:{kind}"
    assert await registry.residue() == NOTHING
    assert await registry.audit() == []


@pytest.mark.parametrize("name", ["python entry by its older name", "entry with ./", "node"])
async def test_manifests_of_all_accepted_forms_are_kept_as_they_are(registry: RunningRegistry, name: str) -> None:
    forms: dict[str, dict[str, Any]] = {
        "python entry by its older name": {"runtime": "python3.11", "pythonEntry": "main.py", "extra": [1]},
        "entry with ./": {"runtime": "python", "entry": "./main.py"},
        "node": {"runtime": "node24", "entry": "main.py", "pythonEntry": "other.py"},
    }
    document = {"name": "hello", "version": "1.0.0", **forms[name]}
    answer = await registry.publish(pack({"manifest.json": json.dumps(document), "main.py": ""}))
    assert (answer.status, answer.json["manifest"]) == (201, document)


async def test_entry_that_is_a_directory_or_link_is_no_entry(registry: RunningRegistry) -> None:
    link = tarfile.TarInfo("main.py")
    link.type, link.linkname = tarfile.SYMTYPE, "app.py"
    data = compress(tar({"manifest.json": json.dumps(manifest()), "app.py": ""}, [link]))
    assert (await registry.publish(data)).json["type"].endswith(":entry-missing")


@pytest.mark.parametrize("announced", [True, False])
async def test_oversized_body_is_refused_and_leaves_nothing(backend: Backend, announced: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 65536):
            yield BIG[start : start + 65536]

    async with running_registry(backend, max_artifact_bytes=10 * 1024 * 1024) as registry:
        answer = await registry.publish(BIG if announced else chunks())
        assert (answer.status, answer.json["type"]) == (413, "urn:stowage:problem:archive-too-large")
        assert await registry.residue() == NOTHING


async def test_bomb_is_refused_and_leaves_nothing(registry: RunningRegistry) -> None:
    data = compress(tar({"manifest.json": json.dumps(manifest()), "main.py": bytes(64 * 1024 * 1024)}), level=9)
    answer = await registry.publish(data)
    assert (answer.status, answer.json["type"]) == (422, "urn:stowage:problem:archive-ratio")
    assert await registry.residue() == NOTHING


@pytest.mark.parametrize(
    "sent",
    [0, 1000, PART_BYTES - 1, PART_BYTES + 1000, 2 * PART_BYTES + 1000, pytest.param(len(BIG) - 1, id="all-but-one")],
)
@pytest.mark.parametrize(("chunked", "declares"), [(False, False), (True, False), (False, True)])
async def test_client_that_disconnects_leaves_nothing(
    registry: RunningRegistry, sent: int, chunked: bool, declares: bool
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", registry.port)
    query = f"?digest={digest_of(BIG)}" if declares else ""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BIG)}"
    writer.write(
        f"PUT /job-bundles/hello/versions/1.0.0{query} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {registry.token}\r\n{framing}\r\n\r\n".encode()
    )
    part = BIG[:sent]
    writer.write(f"{len(BIG):x}\r\n".encode() + part if chunked else part)
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()
    await writer.wait_closed()
    await registry.settled()
    assert await registry.residue() == NOTHING
    assert await registry.audit() == []
    assert (await registry.publish(bundle())).status == 201


@pytest.mark.parametrize("sent", [3, 2 * PART_BYTES + 1000])
@pytest.mark.parametrize("declares", [False, True], ids=["", "declared"])
async def test_client_that_stalls_is_told_so(backend: Backend, sent: int, declares: bool) -> None:
    query = f"?digest={digest_of(BIG)}" if declares else ""
    async with running_registry(backend, body_idle_seconds=0.3) as registry:
        reader, writer = await asyncio.open_connection("127.0.0.1", registry.port)
        writer.write(
            f"PUT /job-bundles/hello/versions/1.0.0{query} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {registry.token}\r\nContent-Length: {len(BIG)}\r\n\r\n".encode()
        )
        writer.write(BIG[:sent])
        assert b"400 Bad Request" in await reader.readline()
        writer.close()
        await registry.settled()
        assert await registry.residue() == NOTHING


async def test_damaged_chunked_framing_is_refused(backend: Backend) -> None:
    async with running_registry(backend, body_idle_seconds=0.5) as registry:
        reader, writer = await asyncio.open_connection("127.0.0.1", registry.port)
        writer.write(
            f"PUT /job-bundles/hello/versions/1.0.0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {registry.token}\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(b"zzz\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await registry.settled()
        assert await registry.residue() == NOTHING


async def test_a_body_that_stops_coming_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_IDLE_SECONDS", 0.2)
    async with running_registry(backend, body_idle_seconds=0.2) as registry:
        for request in ("PUT /job-bundles/hello/versions/1.0.0", "PUT /jobs/hello"):
            reader, writer = await asyncio.open_connection("127.0.0.1", registry.port)
            writer.write(
                f"{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {registry.token}\r\n"
                f"Content-Length: 100\r\n\r\n{{".encode()
            )
            await writer.drain()
            assert b" 400 " in await reader.readline()
            assert b"urn:stowage:problem:body-stalled" in await reader.read(1000)
            writer.close()
        await registry.settled()
        assert await registry.residue() == NOTHING


async def test_damaged_content_encoding_is_refused(registry: RunningRegistry) -> None:
    answer = await registry.request(
        "PUT", "/job-bundles/hello/versions/1.0.0", data=b"no gzip", headers={"Content-Encoding": "gzip"}
    )
    assert (answer.status, answer.json["type"]) == (400, "urn:stowage:problem:body-damaged")
    assert await registry.residue() == NOTHING


async def test_with_s3_down_publishing_is_unavailable_and_leaves_nothing(backend: Backend) -> None:
    async with running_registry(backend, s3_endpoint="http://127.0.0.1:9") as registry:
        answer = await registry.publish(bundle())
        assert (answer.status, answer.json["type"]) == (503, "urn:stowage:problem:object-store-unavailable")
        assert answer.json["requestId"]
        assert await registry.residue() == NOTHING
        ready = await registry.request("GET", "/readyz", token=None)
        assert (ready.status, ready.json["checks"]["database"]) == (503, "ok")


@pytest.mark.parametrize("passed", [PART_BYTES // 2, 2 * PART_BYTES, pytest.param(len(BIG) - 1, id="all-but-one")])
async def test_with_s3_cut_off_in_mid_upload_publishing_is_unavailable_and_leaves_nothing(
    backend: Backend, passed: int
) -> None:
    with S3Proxy(backend.s3_endpoint).listening() as proxy:
        async with running_registry(backend, s3_endpoint=proxy.url) as registry:
            proxy.cut_after = passed
            answer = await registry.publish(BIG, digest=digest_of(BIG))
            assert (answer.status, answer.json["type"]) == (503, "urn:stowage:problem:object-store-unavailable")
            assert await registry.residue() == NOTHING
            assert await registry.audit() == []
            proxy.cut_after, proxy.parts = None, 0
            assert (await registry.publish(BIG, digest=digest_of(BIG))).status == 201
            assert proxy.parts == 1


@pytest.mark.parametrize("declares", [False, True], ids=["", "declared"])
async def test_what_is_only_found_out_at_the_very_end_is_refused_and_leaves_nothing(
    registry: RunningRegistry, declares: bool
) -> None:
    """All of it is in the bucket by then."""
    large = {"large.bin": os.urandom(PART_BYTES + 1000)}
    for data, kind in (
        (bundle("other", files=large, compression="zstd"), "manifest-mismatch"),
        (bundle(entry="app.py", files=large, compression="zstd"), "entry-missing"),
        (pack({**large, "main.py": ""}, compression="zstd"), "invalid-manifest"),
        (BIG + b"more", "archive-trailing-data"),
    ):
        answer = await registry.publish(data, **({"digest": digest_of(data)} if declares else {}))
        assert (answer.status, answer.json["type"]) == (422, f"urn:stowage:problem:{kind}")
        assert await registry.residue() == NOTHING
    assert (await registry.publish(BIG)).status == 201
    other = bundle(files=large, compression="zstd")
    conflict = await registry.publish(other, **({"digest": digest_of(other)} if declares else {}))
    assert (conflict.status, len(registry.keys()), registry.objects.abort_uploads("")) == (409, 1, 0)


async def test_concurrent_damaged_and_good_bodies_do_not_disturb_each_other(registry: RunningRegistry) -> None:
    async def one(number: int) -> int:
        data = bundle(f"bundle-{number}", files={"data": os.urandom(100_000)})
        return (await registry.publish(data if number % 2 else data[:-20], f"bundle-{number}")).status

    assert await asyncio.gather(*map(one, range(20))) == [422, 201] * 10
    residue = await registry.residue()
    assert (residue["rows"]["versions"], len(residue["keys"]), residue["in_flight"]) == (10, 10, 0)


async def test_body_of_two_gzip_members_and_of_odd_chunks_is_one_tarball(registry: RunningRegistry) -> None:
    plain = gzip.decompress(bundle())
    data = compress(plain[:777]) + compress(plain[777:])

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 7):
            yield data[start : start + 7]

    first = await registry.publish(chunks())
    assert first.status == 201
    assert (await registry.publish(bundle())).json["digest"] == first.json["digest"]


async def test_client_library_reports_problems_with_their_facts(registry: RunningRegistry) -> None:
    status, version = await registry.client.publish("hello", "1.0.0", bundle())
    assert (status, version.revision) == (201, 1)
    with pytest.raises(ServiceError) as caught:
        await registry.client.publish("hello", "1.0.0", bundle(files={"x": "y"}))
    assert (caught.value.status, caught.value.kind) == (409, "version-exists")
    assert caught.value.details["difference"]["added"] == 1


async def test_aiohttp_client_that_breaks_off_leaves_nothing(registry: RunningRegistry) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield BIG[: PART_BYTES + 5]
        raise RuntimeError("the builder died")

    with pytest.raises((RuntimeError, aiohttp.ClientError)):
        await registry.publish(chunks())
    await registry.settled()
    assert await registry.residue() == NOTHING
