"""Fixtures for runs that are Jobs of a real cluster. The runner is a process of this machine, which the pods reach."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.backend import Backend, fresh_backend, running_servers
from tests.kubernetes.executor.cluster import Namespace, Where, fresh_namespace
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.running import RunningRunner, running_runner
from tests.servers import Servers

_NO_CLUSTER = (
    "there is no cluster: set STOWAGE_TEST_KUBECONFIG (or KUBECONFIG) to a kubeconfig, and STOWAGE_TEST_RUNNER_IMAGE "
    "to the runner's image, which its nodes must have"
)


@pytest.fixture(scope="session")
async def where() -> Where:
    """The cluster that the environment names."""
    found = await Where.given()
    if found is None:
        pytest.skip(_NO_CLUSTER)
    return found


@pytest.fixture(scope="session")
def servers(where: Where) -> Iterator[Servers]:
    """PostgreSQL, which no pod reaches, and an S3 server that all do."""
    with running_servers(s3_address=where.address) as running:
        yield running


@pytest.fixture(scope="module")
async def namespace(where: Where) -> AsyncIterator[Namespace]:
    """A namespace of the module's own. Nothing of a run is left in it."""
    async with fresh_namespace(where) as made:
        yield made
        await made.empty()


@pytest.fixture(scope="module")
async def shared_backend(servers: Servers) -> AsyncIterator[Backend]:
    """A database and a bucket of the module's own."""
    async with fresh_backend(servers) as own:
        yield own


@pytest.fixture(scope="module")
async def registry(shared_backend: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry that is up."""
    async with running_registry(shared_backend) as running:
        yield running


@pytest.fixture(scope="module")
def on_cluster(where: Where, namespace: Namespace) -> dict[str, Any]:
    """The settings of a runner whose runs are Jobs there."""
    return {
        "executor": "kubernetes",
        "kubernetes_config": where.kubeconfig,
        "kubernetes_namespace": namespace.name,
        "kubernetes_image": where.image,
        "kubernetes_cpus": 0.05,
        "memory_bytes": 256 * 1024 * 1024,
        "disk_bytes": 64 * 1024 * 1024,
    }


@pytest.fixture(scope="module")
async def runner(
    where: Where,
    shared_backend: Backend,
    registry: RunningRegistry,
    on_cluster: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningRunner]:
    """A runner that is up."""
    scratch = tmp_path_factory.mktemp("runner") / "scratch"
    async with running_runner(shared_backend, registry, scratch, address=where.address, **on_cluster) as running:
        yield running
