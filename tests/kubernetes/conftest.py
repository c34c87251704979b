"""What tests of manifests and clusters need, and why they can't run where it is missing."""

import pytest

from tests.kubernetes.kubectl import Cluster, find_kubectl, named_cluster


@pytest.fixture(scope="session")
def _kubectl() -> None:
    """The program, which renders manifests and applies them."""
    if find_kubectl() is None:
        pytest.skip("kubectl is not installed, which renders the manifests of Kubernetes")


@pytest.fixture(scope="session")
def cluster(_kubectl: None) -> Cluster:
    """A real cluster."""
    found = named_cluster()
    if found is None:
        pytest.skip("no cluster: neither STOWAGE_TEST_KUBECONFIG nor KUBECONFIG names one")
    return found
