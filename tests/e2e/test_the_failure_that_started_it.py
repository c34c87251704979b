"""A tarball packed on a Mac kills Linux jobs, and the registry refuses to replace it: here is how that ends now."""

from pathlib import Path

import pytest

from libs.common.models import ImportState, InputSource, Run, RunState
from tests.e2e.conftest import Product
from tests.e2e.mac import MAC_BINARY, pack_loader_on_a_mac
from tests.e2e.stack import REPOSITORY, archives_below
from tests.registry.running import running_registry
from tests.runner.running import RunningRunner

_LOADER = "observatory-duckdb-loader"

pytestmark = pytest.mark.timeout(600)


async def test_a_bundle_from_a_mac_is_refused_then_replaced_and_the_same_request_succeeds(
    product: Product, tmp_path: Path
) -> None:
    mac = await pack_loader_on_a_mac(tmp_path)
    async with running_registry(product.backend) as strict:
        stopped = await strict.publish(mac, _LOADER, "0.1.0")
        assert (stopped.status, stopped.json["type"]) == (422, "urn:stowage:problem:platform-not-allowed")
        assert MAC_BINARY in [member["path"] for member in stopped.json["members"]]
    await product.import_observatory("observatory-data-generator", "observatory-inbox-normalizer")
    published = await product.registry.publish(mac, _LOADER, "0.1.0")
    assert published.status == 201
    assert published.json["platforms"] == ["darwin/arm64", "darwin/x64"], "the library is a universal binary"
    mac_digest = published.json["digest"]

    async with product.runner() as runner:
        partitions = await _partitions(runner)
        refused = await _load(runner, partitions)
        assert (refused.state, refused.digest) == (RunState.FAILED, mac_digest)
        assert refused.error is not None
        assert refused.error.type == "platform_mismatch"
        assert MAC_BINARY in refused.error.message
        assert "needs darwin/arm64" in refused.error.message
        assert "this runner is linux/x64/glibc" in refused.error.message
        assert "POST /examples/import" in refused.error.message
        assert refused.timings.start_ms is None

    async with product.runner(platform_check=False) as careless:
        died = await _load(careless, partitions)
        assert died.state is RunState.FAILED
        assert "invalid ELF header" in (died.error.message if died.error else "") + await careless.log(died.id)

    conflict = await product.registry.publish(mac[:-1] + bytes([mac[-1] ^ 1]), _LOADER, "0.1.0")
    assert conflict.status == 422, "a damaged tarball changes nothing"

    imported = await product.import_observatory()
    assert imported.state is ImportState.SUCCEEDED, imported
    loader = next(build for build in imported.builds if build.slug == _LOADER)
    assert (loader.revision, loader.previous_digest, loader.unchanged) == (2, mac_digest, False)

    async with product.runner() as runner:
        succeeded = await _load(runner, partitions)
        assert succeeded.state is RunState.SUCCEEDED, succeeded.error
        assert succeeded.digest == loader.digest
        assert succeeded.result["rowsLoaded"] > 0
        assert (await runner.client.run(refused.id)).digest == mac_digest
        again = await _load(runner, partitions, warehouse=succeeded.id)
        assert again.result["totalRows"] == succeeded.result["totalRows"], "loading a partition twice adds nothing"
    await _assert_the_trail_is_complete(product, mac_digest, loader.digest)
    assert archives_below(REPOSITORY, product.workspaces, product.scratch) == []
    assert list(product.workspaces.iterdir()) == []
    assert list(product.scratch.iterdir()) == []


async def _partitions(runner: RunningRunner) -> str:
    """The run whose outputs are normalized partitions."""
    generated = await runner.run("observatory-data-generator@0.1.0", parameters={"seed": 1, "hours": 1})
    assert generated.state is RunState.SUCCEEDED, generated.error
    normalized = await runner.run(
        "observatory-inbox-normalizer@0.1.0", inputs={"inbox": InputSource(run=generated.id, path="inbox/")}
    )
    assert normalized.state is RunState.SUCCEEDED, normalized.error
    return normalized.id


async def _load(runner: RunningRunner, partitions: str, warehouse: str | None = None) -> Run:
    inputs = {"partitions": InputSource(run=partitions, path="partitions/")}
    if warehouse:
        inputs["warehouse"] = InputSource(run=warehouse, path="warehouse.duckdb")
    return await runner.run(f"{_LOADER}@0.1.0", inputs=inputs)


async def _assert_the_trail_is_complete(product: Product, mac_digest: str, digest: str | None) -> None:
    trail = [event for event in await product.registry.audit() if event["subject"] == f"{_LOADER}@0.1.0"]
    assert [event["action"] for event in trail] == ["version.published", "version.replaced"]
    assert (trail[1]["previous_digest"], trail[1]["digest"]) == (mac_digest, digest)
    assert trail[1]["actor"] == "builder"
    assert "requested by admin" in trail[1]["reason"]
