"""A run's code comes from the bucket and nowhere else, and is nothing but what was published."""

import gzip
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.common.models import RunState
from libs.common.native import host_platform
from tests.backend import Backend, fresh_backend
from tests.registry.bundles import MACHO, bundle
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish, python
from tests.runner.running import OPEN, RunningRunner, running_runner
from tests.servers import Servers

REGISTRY_SETTINGS = {"allowed_platforms": "any"}  # the runner's own check is what is tested
RUNNER_SETTINGS = OPEN  # jobs leave marks for the tests


def _marking(marker: Path) -> bytes:
    return node(
        f"import fs from 'node:fs'; fs.writeFileSync({str(marker)!r}, 'ran'); export const handler = () => 'ran'"
    )


def _corrupt_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": _corrupt_byte,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _data: b"",
    "bytes appended": lambda data: data + b"\0" * 16,
    "compressed anew": lambda data: gzip.compress(gzip.decompress(data), 1, mtime=1),
    "something else": lambda _data: bundle(
        files={"main.mjs": "export const handler = () => 'other'"}, runtime="node24"
    ),
    "no archive": lambda _data: b"<html>503</html>",
}


@pytest.mark.parametrize("damage", _DAMAGE)
async def test_a_damaged_object_is_told_and_nothing_of_it_is_executed(
    registry: RunningRegistry, runner: RunningRunner, tmp_path: Path, damage: str
) -> None:
    marker = tmp_path / "marker"
    await publish(registry, _marking(marker))
    assert (await runner.run()).result == "ran"
    marker.unlink()
    (key,) = await _keys_of(registry)
    with registry.objects.read(key) as body:
        data = b"".join(body)
    registry.objects.put(key, _DAMAGE[damage](data), content_type="application/gzip")
    try:
        run = await runner.run()
    finally:
        registry.objects.put(key, data, content_type="application/gzip")
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert (run.error.type, "Nothing of it was executed" in run.error.message) == ("integrity", True), run.error
    assert not marker.exists()
    assert (await runner.run()).result == "ran"


async def test_a_bundle_whose_object_is_gone_fails_and_says_so(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    body = node("export const handler = () => 'ran'", slug="gone")
    await publish(registry, body, "gone")
    assert (await runner.run("gone@latest")).result == "ran"
    key = f"artifacts/sha256/{_hex(body)[:2]}/{_hex(body)}.tgz"
    registry.objects.delete(key)
    run = await runner.run("gone@latest")
    assert run.error is not None
    assert (run.error.type, key in run.error.message) == ("object_missing", True)


@pytest.fixture
async def own_backend(servers: Servers) -> AsyncIterator[Backend]:
    async with fresh_backend(servers) as own:
        yield own


async def test_without_the_bucket_a_run_fails_rather_than_finding_code_elsewhere(
    own_backend: Backend, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    async with running_registry(own_backend) as registry:
        await publish(registry, _marking(marker))
        async with running_runner(own_backend, registry, tmp_path / "scratch", **OPEN) as runner:
            assert (await runner.run()).result == "ran"
            marker.unlink()
        async with running_runner_without_bucket(own_backend, registry, tmp_path / "scratch") as runner:
            run = await runner.run(seconds=60)
            assert run.error is not None
            assert run.error.type == "object_store_unavailable"
            assert not marker.exists()
            log = await runner.log(run.id)
            assert "failed: The bundle could not be fetched" in log
            assert runner.left_in_scratch() == []


def running_runner_without_bucket(backend: Backend, registry: RunningRegistry, scratch: Path) -> Any:
    """A runner for which the S3 server is away."""
    return running_runner(
        backend, registry, scratch, s3_endpoint="http://127.0.0.1:9", needed_checks=("database", "queue")
    )


async def test_a_bundle_for_another_platform_is_refused_before_anything_is_fetched_or_started(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    member = "node_modules/@duckdb/node-bindings-darwin-arm64/duckdb.node"
    body = node("export const handler = () => 'ran'", slug="macish", files={member: MACHO})
    await publish(registry, body, "macish")
    registry.objects.delete(f"artifacts/sha256/{_hex(body)[:2]}/{_hex(body)}.tgz")
    run = await runner.run("macish@latest")
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "platform_mismatch"
    assert run.error.message == (
        f"member {member} needs darwin/arm64; this runner is {host_platform()}. Rebuild the bundle on Linux "
        "(POST /examples/import) or publish a variant for this platform."
    )
    assert (run.timings.fetch_ms, run.timings.start_ms) == (None, None)
    assert "unpacked" not in await runner.log(run.id)


async def test_a_package_with_code_for_several_platforms_is_fine_if_one_is_ours(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    ours = Path("/bin/true").read_bytes()
    files = {"node_modules/fs/prebuilds/darwin/a.node": MACHO, "node_modules/fs/prebuilds/linux/a.node": ours}
    await publish(registry, node("export const handler = () => 'ran'", files=files))
    assert (await runner.run()).result == "ran"


async def test_with_the_check_switched_off_the_loader_complains_instead(own_backend: Backend, tmp_path: Path) -> None:
    code = """
        import { createRequire } from 'node:module';
        export const handler = () => createRequire(import.meta.url)('./native/duckdb.node');
    """
    async with (
        running_registry(own_backend, **REGISTRY_SETTINGS) as registry,
        running_runner(own_backend, registry, tmp_path / "scratch", platform_check=False, **OPEN) as runner,
    ):
        await publish(registry, node(code, files={"native/duckdb.node": MACHO}))
        run = await runner.run()
    assert run.error is not None
    assert "invalid ELF header" in run.error.message


@pytest.mark.parametrize(
    ("runtime", "language", "fine"),
    [
        ("node", "node", True),
        ("node24", "node", True),
        ("node18", "node", False),
        ("python", "python", True),
        ("python3", "python", True),
        ("python3.11", "python", True),
        ("python3.8", "python", False),
        ("python2", "python", False),
    ],
)
async def test_a_runtime_that_is_not_here_is_refused(
    registry: RunningRegistry, runner: RunningRunner, runtime: str, language: str, fine: bool
) -> None:
    entry = "main.mjs" if language == "node" else "main.py"
    files = {"main.mjs": "export const handler = () => 'ran'", "main.py": "def handler(context): return 'ran'"}
    await publish(registry, bundle(files=files, runtime=runtime, entry=entry))
    run = await runner.run()
    if fine:
        assert run.result == "ran", run.error
    else:
        assert run.error is not None
        assert run.error.type == "runtime_unavailable"
        assert f"The bundle wants the runtime {runtime}; this runner has {language} " in run.error.message


async def test_bundles_compressed_with_zstd_run(registry: RunningRegistry, runner: RunningRunner) -> None:
    body = bundle(files={"main.py": "def handler(context): return 'ran'"}, compression="zstd")
    await publish(registry, body)
    assert (await runner.run()).result == "ran"


async def test_nothing_of_a_bundle_is_kept_between_runs(registry: RunningRegistry, runner: RunningRunner) -> None:
    code = """
        from pathlib import Path
        def handler(context):
            left = sorted(path.name for path in Path(context.work_dir).iterdir())
            (Path(context.work_dir) / 'kept').touch()
            (Path(__file__).parent / 'kept').touch()
            return [left, sorted(path.name for path in Path(__file__).parent.iterdir())]
    """
    await publish(registry, python(code))
    results = [(await runner.run()).result for _ in range(2)]
    assert results[0] == results[1]
    assert results[0][0] == []


async def _keys_of(registry: RunningRegistry) -> list[str]:
    version = (await registry.request("GET", "/job-bundles/hello/versions/1.0.0")).json
    value = version["digest"].removeprefix("sha256:")
    return registry.keys(f"artifacts/sha256/{value[:2]}/{value}")


def _hex(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
