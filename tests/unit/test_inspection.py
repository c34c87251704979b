"""What the registry learns from an upload."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from libs.common.archive import ArchiveError, ArchiveErrorCode, ArchiveLimits
from services.registry.inspection import Inspection, ManifestError, UploadInspection
from tests.unit.archives import chunks, directory, file, hardlink, header, symlink, tar, tgz, tzst
from tests.unit.test_native import elf, fat, macho

MANIFEST = file("manifest.json", b'{"name": "a", "version": "1.0.0", "extra": [1.5, null]}')


def inspect(archive: bytes, size: int = 1 << 20, limits: ArchiveLimits | None = None) -> Inspection:
    upload = UploadInspection(limits)
    for chunk in chunks(archive, size):
        upload.feed(chunk)
    return upload.finish()


def content(*members: bytes) -> str:
    return inspect(tgz(MANIFEST, *members)).content_digest


def test_upload_is_described() -> None:
    archive = tgz(
        directory("."),
        MANIFEST,
        directory("bin"),
        file("bin/run", b"#!/bin/sh\n", mode=0o4755),
        hardlink("bin/again", "bin/run"),
        symlink("link", "bin/run"),
        directory("empty"),
        directory("bin"),
    )
    found = inspect(archive)
    assert found.digest == "sha256:" + hashlib.sha256(archive).hexdigest()
    assert found.size == len(archive)
    assert found.compression == "gzip"
    assert found.manifest == {"name": "a", "version": "1.0.0", "extra": [1.5, None]}
    assert found.unpacked_size == 55 + 10
    assert found.file_count == 4
    assert (found.native, found.platforms) == ([], [])
    digest = hashlib.sha256(b"#!/bin/sh\n").digest()
    assert [(r.path, str(r.type), r.size, r.mode, r.digest, r.link_target) for r in found.files[1:]] == [
        ("bin", "directory", 0, 0, None, None),
        ("bin/run", "file", 10, 0o755, digest, None),
        ("bin/again", "hardlink", 10, 0o755, digest, "bin/run"),
        ("link", "symlink", 0, 0, None, "bin/run"),
        ("empty", "directory", 0, 0, None, None),
    ]


def test_chunking_makes_no_difference() -> None:
    archive = tzst(MANIFEST, file("a.node", elf(needed=(b"libc.so.6",))), file("b", b"x" * 3000))
    expected = inspect(archive)
    assert expected.compression == "zstd"
    for size in range(1, len(archive), 7):
        assert inspect(archive, size) == expected


def test_native_members_name_their_platforms() -> None:
    found = inspect(
        tgz(
            MANIFEST,
            file("linux.node", elf(needed=(b"libc.so.6",))),
            hardlink("same.node", "linux.node"),
            file("mac.dylib", fat(macho(0x01000007), macho(0x0100000C))),
            file("text.node", b"no library"),
        )
    )
    assert found.native == [
        ("linux.node", "linux/x64/glibc"),
        ("same.node", "linux/x64/glibc"),
        ("mac.dylib", "darwin/arm64"),
        ("mac.dylib", "darwin/x64"),
    ]
    assert found.platforms == ["darwin/arm64", "darwin/x64", "linux/x64/glibc"]


# -- the content digest


def test_content_digest_is_what_its_definition_says() -> None:
    found = inspect(
        tgz(MANIFEST, file("b", b"x", mode=0o755), symlink("a", "b"), directory("e"), directory("d"), file("d/f"))
    )
    manifest = MANIFEST[512:].rstrip(b"\0")
    lines = [
        b"symlink\0\x001\0b\0a\n",
        b"file\x00755\x001\0" + hashlib.sha256(b"x").hexdigest().encode() + b"\0b\n",
        b"file\x00644\x000\0" + hashlib.sha256(b"").hexdigest().encode() + b"\0d/f\n",
        b"directory\0\x000\0\0e\n",
        b"file\x00644\x0055\0" + hashlib.sha256(manifest).hexdigest().encode() + b"\0manifest.json\n",
    ]
    assert found.content_digest == "sha256:" + hashlib.sha256(b"".join(lines)).hexdigest()


def test_content_digest_ignores_packing() -> None:
    members = (file("d/a", b"1"), file("d/b", b"2", mode=0o700), symlink("l", "d/a"), directory("empty"))
    expected = content(*members)
    assert content(*reversed(members)) == expected
    assert content(directory("d"), *members) == expected
    assert content(*members, directory("./empty/")) == expected
    assert inspect(tzst(MANIFEST, *members)).content_digest == expected
    assert inspect(gzip.compress(tar(MANIFEST, *members), 1)).content_digest == expected
    assert content(file("./d/a", b"1", mode=0o600), file("d//b", b"2", mode=0o755), *members[2:]) == expected


def test_hard_links_count_as_files() -> None:
    assert content(file("a", b"1"), hardlink("b", "a")) == content(file("b", b"1"), hardlink("a", "b"))
    assert content(file("a", b"1"), hardlink("b", "a")) == content(file("a", b"1"), file("b", b"1"))


@pytest.mark.parametrize(
    "other",
    [
        (file("a", b"2"), symlink("l", "a"), directory("e")),
        (file("a", b"1", mode=0o755), symlink("l", "a"), directory("e")),
        (file("b", b"1"), symlink("l", "a"), directory("e")),
        (file("a", b"1"), symlink("l", "./a"), directory("e")),
        (file("a", b"1"), symlink("l", "a")),
        (file("a", b"1"), symlink("l", "a"), file("e")),
        (file("a", b"1"), symlink("l", "a"), file("e/f")),
        (file("a", b"1"), symlink("l", "a"), directory("e"), directory("f")),
    ],
)
def test_content_digest_sees_every_difference(other: tuple[bytes, ...]) -> None:
    assert content(*other) != content(file("a", b"1"), symlink("l", "a"), directory("e"))


def test_newlines_in_names_imitate_no_record() -> None:
    assert content(symlink("a", "b"), symlink("c", "d")) != content(symlink("a\nsymlink", "b"))
    assert content(directory("a"), directory("b")) != content(directory("a\ndirectory"))


# -- the manifest


def refused(*members: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        inspect(tgz(*members))
    assert caught.value.member == "manifest.json"
    return str(caught.value)


def test_missing_manifest_is_refused() -> None:
    assert "no manifest.json at its root" in refused(file("package/manifest.json", b"{}"))
    assert "no manifest.json" in refused()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not acceptable JSON"),
        (b"{", "not acceptable JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'\xff\xfe{\0}\0', "not UTF-8"),
        (b'\xef\xbb\xbf{}', "BOM"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not acceptable JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": [[{"b": "\\udc00"}]]}', "surrogate"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 50_000, "nested"),
    ],
)  # fmt: skip
def test_unreadable_manifest_is_refused(data: bytes, reason: str) -> None:
    assert reason in refused(file("manifest.json", data))


def test_manifest_is_bounded() -> None:
    def sized(size: int) -> bytes:
        return file("manifest.json", b'{"a":"' + b"x" * (size - 8) + b'"}')

    assert inspect(tgz(sized(ArchiveLimits().max_manifest_bytes))).manifest["a"]
    assert "at most" in refused(sized(ArchiveLimits().max_manifest_bytes + 1))


def test_manifest_must_be_a_regular_file() -> None:
    other = file("other.json", b"{}")
    assert "symlink" in refused(other, symlink("manifest.json", "other.json"))
    assert "hardlink" in refused(other, hardlink("manifest.json", "other.json"))
    assert "directory" in refused(directory("manifest.json"))


def test_manifest_with_escapes_is_text() -> None:
    assert inspect(tgz(file("manifest.json", b'{"a": "\\u00e4 \\ud83d\\ude00"}'))).manifest == {"a": "ä 😀"}


def test_many_keys_cost_no_time() -> None:
    data = json.dumps({f"k{i}": i for i in range(15_000)}).encode()
    assert "twice" in refused(file("manifest.json", data[:-1] + b', "k14999": 1}'))


# -- the whole


def test_bad_archive_is_refused_with_its_member() -> None:
    with pytest.raises(ArchiveError) as caught:
        inspect(tgz(MANIFEST, file("../evil")))
    assert caught.value.code is ArchiveErrorCode.UNSAFE_PATH
    assert caught.value.member == "../evil"
    with pytest.raises(ArchiveError):
        inspect(tgz(MANIFEST)[:-1])


def test_memory_does_not_grow_with_the_upload() -> None:
    block = hashlib.sha256(b"seed").digest() * 2048

    def measured(megabytes: int) -> int:
        upload = UploadInspection(ArchiveLimits(max_ratio=10_000))
        stream = MANIFEST + header("big.node", size=megabytes << 20)
        first = gzip.compress(stream + elf(needed=(b"libc.so.6",)).ljust(65_536, b"\0"), 1)
        tracemalloc.start()
        upload.feed(first)
        piece = gzip.compress(block, 1)
        for _ in range(megabytes * 16 - 1):
            upload.feed(piece)
        upload.feed(gzip.compress(bytes(1024)))
        assert upload.finish().platforms == ["linux/x64/glibc"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert measured(64) < measured(4) + (1 << 20)


def test_real_bundle_is_described(native_packages: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "real"}')
    archive = tmp_path / "real.tgz"
    folder = native_packages / "@duckdb"
    subprocess.run(
        ["tar", "-I", "gzip -1", "-cf", archive, "-C", tmp_path, "manifest.json", "-C", folder.parent, folder.name],
        check=True,
    )
    found = inspect(archive.read_bytes())
    assert found.platforms == ["darwin/arm64", "darwin/x64", "linux/x64/glibc"]
    assert ("@duckdb/node-bindings-linux-x64/duckdb.node", "linux/x64/glibc") in found.native
    sizes: list[Any] = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert found.unpacked_size == sum(sizes) + 16
    assert found.file_count == len(sizes) + 1
