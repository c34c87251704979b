"""The services keep what their OpenAPI documents say: `schemathesis` asks them, with good requests and bad ones."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.backend import Backend
from tests.builder.running import running_builder
from tests.registry.bundles import bundle
from tests.registry.running import RunningRegistry
from tests.runner.running import OPEN, running_runner

_SECONDS = 120
_EXCLUDED = "positive_data_acceptance"
"""What a schema can't say, such as that a bundle has no such version, is refused as well."""


async def _examine(directory: Path, url: str, token: str, *options: str) -> None:
    """Let schemathesis look for an answer that the service at `url` does not promise. Its notes go to `directory`."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--exclude-checks", _EXCLUDED),
        *("--seed", "20261123", "--generation-deterministic", "--warnings", "off", "--no-color"),
        *("--suppress-health-check", "all", *options),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, printed.decode()
    assert "No issues found" in printed.decode()


async def test_the_registry_keeps_its_word_to_an_administrator(registry: RunningRegistry, tmp_path: Path) -> None:
    await registry.publish(bundle(), version="1.2.0")
    await _examine(
        tmp_path, registry.url, registry.token, "--phases", "examples,coverage,fuzzing", "--max-examples", "2"
    )


async def test_the_registry_keeps_its_word_to_who_may_read_alone(registry: RunningRegistry, tmp_path: Path) -> None:
    await registry.publish(bundle(), version="1.2.0")
    token = await registry.token_for("reader", "bundles:read")
    await _examine(tmp_path, registry.url, token, "--phases", "examples,fuzzing", "--max-examples", "2")


async def test_the_runner_keeps_its_word(backend: Backend, registry: RunningRegistry, tmp_path: Path) -> None:
    async with running_runner(backend, registry, tmp_path / "scratch", **OPEN) as runner:
        await _examine(tmp_path, runner.url, runner.token, "--phases", "examples,coverage", "--max-examples", "2")


async def test_the_builder_keeps_its_word(backend: Backend, registry: RunningRegistry, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "work").mkdir()
    async with running_builder(
        backend,
        registry_url=registry.url,
        service_token=registry.token,
        token=registry.token,
        work_dir=tmp_path / "work",
        examples_dir=tmp_path / "examples",
    ) as builder:
        await _examine(tmp_path, builder.url, registry.token, "--phases", "examples,coverage", "--max-examples", "2")


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_the_reference_needs_no_token_and_is_sent_once(registry: RunningRegistry, path: str) -> None:
    first = await registry.request("GET", path, token=None)
    assert (first.status, first.headers["X-Content-Type-Options"]) == (200, "nosniff")
    known = {"If-None-Match": first.headers["ETag"]}
    assert (await registry.request("GET", path, token=None, headers=known)).status == 304
    if path == "/docs":
        policy = first.headers["Content-Security-Policy"]
        assert "default-src 'none'; style-src 'sha256-" in policy
        assert "unsafe" not in policy
