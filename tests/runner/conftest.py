"""Fixtures of the runner's tests. Registry and runner are shared by the tests of a module."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.backend import Backend, fresh_backend
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.hostile import Target, target
from tests.runner.running import RunningRunner, running_runner
from tests.servers import Servers


@pytest.fixture
async def own(servers: Servers) -> AsyncIterator[Backend]:
    """A database and a bucket of the test's own."""
    async with fresh_backend(servers) as backend:
        yield backend


@pytest.fixture(scope="module")
async def shared_backend(servers: Servers) -> AsyncIterator[Backend]:
    """A database and a bucket of the module's own."""
    async with fresh_backend(servers) as own:
        yield own


@pytest.fixture(scope="module")
async def registry(shared_backend: Backend, request: pytest.FixtureRequest) -> AsyncIterator[RunningRegistry]:
    """A registry that is up, with the module's `REGISTRY_SETTINGS`."""
    async with running_registry(shared_backend, **getattr(request.module, "REGISTRY_SETTINGS", {})) as running:
        yield running


@pytest.fixture(scope="module")
async def shared_runner(
    shared_backend: Backend,
    registry: RunningRegistry,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[RunningRunner]:
    """A runner that is up, with the module's `RUNNER_SETTINGS`. It leaves nothing in its scratch directory."""
    scratch = tmp_path_factory.mktemp("runner") / "scratch"
    settings = getattr(request.module, "RUNNER_SETTINGS", {})
    async with running_runner(shared_backend, registry, scratch, **settings) as running:
        yield running
    assert list(scratch.iterdir()) == []


@pytest.fixture
def runner(shared_runner: RunningRunner) -> RunningRunner:
    """The module's runner."""
    return shared_runner


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """When a test is over, no run of the module's runner has left anything in the scratch directory."""
    running = request.getfixturevalue("shared_runner") if "runner" in request.fixturenames else None
    yield
    if running is not None:
        assert running.left_in_scratch() == []


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
async def victim(
    shared_backend: Backend,
    registry: RunningRegistry,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Target]:
    """A runner to attack, at each level that confines."""
    scratch = tmp_path_factory.mktemp(request.param) / "scratch"
    async with target(shared_backend, registry, scratch, request.param) as attacked:
        yield attacked
    assert list(scratch.iterdir()) == []
