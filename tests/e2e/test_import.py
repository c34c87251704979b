"""Importing the environmental observatory on a clean machine, twice."""

import asyncio
from collections import Counter

import pytest

from libs.common.archive import ArchiveReader, Entry
from libs.common.models import ImportState
from tests.backend import Backend
from tests.e2e.conftest import Product
from tests.e2e.stack import REPOSITORY, archives_below

_NATIVE = "node_modules/@duckdb/node-bindings-linux-x64/duckdb.node"
_SLUGS = {
    "observatory-data-generator",
    "observatory-duckdb-loader",
    "observatory-inbox-normalizer",
    "observatory-report-publisher",
    "observatory-visualization-runner",
}

pytestmark = pytest.mark.timeout(600)


class _Start:
    """An EntrySink that keeps the first bytes of one member."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes = b""
        self._inside = False

    def begin(self, entry: Entry) -> None:
        self._inside = entry.path == self.path

    def data(self, chunk: memoryview) -> None:
        if self._inside and len(self.bytes) < 20:
            self.bytes += bytes(chunk[:20])

    def end(self) -> None:
        self._inside = False


async def test_import_publishes_linux_binaries_and_importing_again_changes_nothing(product: Product) -> None:
    first = await product.import_observatory()
    assert first.state is ImportState.SUCCEEDED, first
    assert {build.slug for build in first.builds} == _SLUGS
    assert all(build.unchanged is False and build.revision == 1 for build in first.builds)
    loader = next(build for build in first.builds if build.slug == "observatory-duckdb-loader")
    assert loader.platforms == ["linux/x64/glibc"]
    assert await _first_bytes_of_native(product.backend, loader.digest) == (b"\x7fELF", 62)

    second = await product.import_observatory()
    assert second.state is ImportState.SUCCEEDED, second
    assert all(build.unchanged is True and build.revision == 1 for build in second.builds)
    assert {build.digest for build in second.builds} == {build.digest for build in first.builds}

    actions = Counter(await product.registry.actions())
    assert actions == {
        "version.published": 5,
        "import.requested": 2,
        "import.finished": 2,
        "job.created": 5,
        "workflow.created": 2,
    }
    assert product.backend.keys("uploads/") == []
    assert len(product.backend.keys("artifacts/")) == 5
    assert len(product.backend.keys("logs/builds/")) == 10
    assert list(product.workspaces.iterdir()) == []
    assert archives_below(REPOSITORY) == []


async def _first_bytes_of_native(backend: Backend, digest: str | None) -> tuple[bytes, int]:
    """The magic and the machine of the loader's native module, as it is in the bucket."""
    (row,) = await backend.fetch("SELECT object_key FROM registry.artifacts WHERE digest = $1", digest)

    def read() -> bytes:
        store, sink = backend.objects(), _Start(_NATIVE)
        reader = ArchiveReader(sink)
        with store.read(row["object_key"]) as body:
            for chunk in body:
                reader.feed(chunk)
        reader.finish()
        store.close()
        return sink.bytes

    start = await asyncio.to_thread(read)
    return start[:4], int.from_bytes(start[18:20], "little")
