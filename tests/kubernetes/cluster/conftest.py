"""Fixtures for tests that install Stowage on a cluster, one after the other."""

import os
from collections.abc import Iterator

import pytest

from tests.kubernetes.cluster.installation import Installation, installed
from tests.kubernetes.kubectl import Cluster

EXECUTORS = {"process": "local", "kubernetes": "local-jobs"}
"""The overlay that executes runs so."""


@pytest.fixture(scope="session")
def installation(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Stowage, installed for these tests alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("a cluster has room for one installation: make test-kubernetes runs these tests, one by one")
    with installed(cluster, tmp_path_factory.mktemp("layers")) as there:
        yield there


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(installation: Installation, request: pytest.FixtureRequest) -> str:
    """How runs are executed by now: the installation went over to it while it was there."""
    name: str = request.param
    installation.apply(EXECUTORS[name])
    return name
