"""The three services in this process, for tests that follow a bundle through all of them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.common.client import BuilderClient
from libs.common.models import Import
from tests.backend import Backend
from tests.builder.running import running_builder
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.running import RunningRunner, running_runner


@dataclass(frozen=True)
class Product:
    """Registry and builder that are up, and a way to start runners beside them."""

    backend: Backend
    registry: RunningRegistry
    builder: BuilderClient
    workspaces: Path
    scratch: Path

    def runner(self, **settings: Any) -> AbstractAsyncContextManager[RunningRunner]:
        """A runner; its settings may differ from the defaults."""
        return running_runner(self.backend, self.registry, self.scratch, **settings)

    async def import_observatory(self, *slugs: str) -> Import:
        """Import the example, or some of its bundles, and wait for the end."""
        started = await self.builder.start_import("environmental-observatory", list(slugs) or None)
        async for _number, _kind, _data in self.builder.import_events(started.id):
            pass
        return await self.builder.import_(started.id)


@pytest.fixture
async def product(backend: Backend, tmp_path: Path) -> AsyncIterator[Product]:
    """Registry and builder that are up. The registry takes bundles for any platform."""
    workspaces, scratch = tmp_path / "workspaces", tmp_path / "scratch"
    workspaces.mkdir()
    async with running_registry(backend, allowed_platforms="any") as registry:
        token = await registry.token_for("builder", "bundles:read", "bundles:publish", "bundles:force")
        async with running_builder(
            backend, registry_url=registry.url, service_token=token, token=registry.token, work_dir=workspaces
        ) as builder:
            yield Product(backend, registry, builder.client, workspaces, scratch)
