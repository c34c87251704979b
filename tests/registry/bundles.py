"""Small bundles for tests: tarballs from a few files and a manifest."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, Literal

import zstandard

Files = Mapping[str, bytes | str]

MACHO = bytes.fromhex("cffaedfe0c000001000000000600000000000000000000000000000000000000") + bytes(64)
"""A library of an Apple machine, as far as its header tells: darwin/arm64."""


def manifest(slug: str = "hello", version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """A manifest of a Python bundle whose entry is `main.py`."""
    return {"name": slug, "version": version, "runtime": "python3.11", "entry": "main.py", **more}


def bundle(
    slug: str = "hello",
    version: str = "1.0.0",
    files: Files | None = None,
    *,
    compression: Literal["gzip", "zstd"] = "gzip",
    level: int = 6,
    **more: Any,
) -> bytes:
    """A bundle: `manifest.json` with `more` in it, a `main.py`, and the given files, which go before these two."""
    return pack(
        {
            "manifest.json": json.dumps(manifest(slug, version, **more)),
            "main.py": "def handler(context):\n    return context.parameters\n",
            **(files or {}),
        },
        compression=compression,
        level=level,
    )


def pack(files: Files, *, compression: Literal["gzip", "zstd"] = "gzip", level: int = 6) -> bytes:
    """A tarball of just these files. The same files always give the same bytes."""
    return compress(tar(files), compression=compression, level=level)


def tar(files: Files, extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """An uncompressed tar of these files, then members that are nothing but a header."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra or []:
            archive.addfile(member)
    return target.getvalue()


def digest_of(data: bytes) -> str:
    """The digest of a tarball."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(data: bytes, *, compression: Literal["gzip", "zstd"] = "gzip", level: int = 6) -> bytes:
    """Compress without a time in the header."""
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=level).compress(data)
    return gzip.compress(data, compresslevel=level, mtime=0)
