"""Fixtures of the registry's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.backend import Backend
from tests.registry.running import RunningRegistry, running_registry


@pytest.fixture
async def registry(backend: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry that is up."""
    async with running_registry(backend) as running:
        yield running
