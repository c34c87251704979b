"""A builder with examples of the test's own, and a real registry."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libs.common.models import BuildState, Import, ImportState
from tests.backend import Backend
from tests.builder.examples import WrittenExample
from tests.builder.running import BuilderProcess, RunningBuilder, running_builder
from tests.registry.running import RunningRegistry, running_registry

_SERVICE_SCOPES = ["bundles:read", "bundles:publish", "bundles:force"]


@dataclass
class Shop:
    """What a builder needs, and what it may not leave behind."""

    backend: Backend
    registry: RunningRegistry
    service_token: str
    token: str
    example: WrittenExample
    work_dir: Path
    processes: list[BuilderProcess] = field(default_factory=list)

    def builder(self, **settings: object) -> AbstractAsyncContextManager[RunningBuilder]:
        """A builder in this process."""
        return running_builder(
            self.backend,
            service_token=self.service_token,
            token=self.token,
            work_dir=self.work_dir,
            **{"registry_url": self.registry.url, "examples_dir": self.example.directory, **settings},
        )

    def process(self, **settings: object) -> BuilderProcess:
        """A builder in a process of its own, not yet started; killed at the end of the test."""
        process = BuilderProcess(
            self.backend,
            registry_url=self.registry.url,
            service_token=self.service_token,
            tmpdir=self.work_dir,
            settings={"examples_dir": self.example.directory, "grace_seconds": 0.5, **settings},
        )
        self.processes.append(process)
        return process

    def left_behind(self) -> list[str]:
        """What is in the temporary directory."""
        below = os.walk(self.work_dir)  # passes over what is removed meanwhile
        found = [Path(folder) / name for folder, folders, files in below for name in (*folders, *files)]
        return sorted(str(path.relative_to(self.work_dir)) for path in found)

    async def log(self, build_id: str) -> str:
        """The log of a build as it is in the bucket."""
        store = self.backend.objects()
        try:
            with store.read(f"logs/builds/{build_id}.log") as body:
                return b"".join(body).decode()
        finally:
            store.close()


async def finished(builder: RunningBuilder, started: Import, *, seconds: float = 120) -> Import:
    """The import when it has ended."""

    async with asyncio.timeout(seconds):
        kinds = [kind async for _, kind, _ in builder.client.import_events(started.id)]
    assert kinds[-1] == "import.finished"
    return await builder.client.import_(started.id)


async def import_now(builder: RunningBuilder, example: WrittenExample, bundles: list[str] | None = None) -> Import:
    """Import an example and wait for the end."""
    return await finished(builder, await builder.client.start_import(example.name, bundles))


def require_success(import_: Import) -> Import:
    """The import, if everything succeeded."""
    assert import_.state is ImportState.SUCCEEDED, import_.model_dump_json(indent=2)
    assert all(build.state is BuildState.SUCCEEDED for build in import_.builds)
    return import_


@pytest.fixture
async def shop(backend: Backend, tmp_path: Path) -> AsyncIterator[Shop]:
    """A registry, and a place for a builder that must be empty at the end."""
    work_dir = tmp_path / "tmp"
    work_dir.mkdir()
    async with running_registry(backend) as registry:
        service_token = await registry.token_for("builder", *_SERVICE_SCOPES)
        token = await registry.token_for("alice", "builds:write")
        shop = Shop(backend, registry, service_token, token, WrittenExample(tmp_path / "examples"), work_dir)
        yield shop
        for process in shop.processes:
            process.kill()
    assert shop.left_behind() == []
