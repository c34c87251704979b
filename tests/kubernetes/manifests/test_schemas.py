"""Every manifest is one that Kubernetes knows: by its published schemas, and by a real API server."""

from pathlib import Path

import kubernetes_validate
import pytest

from tests.kubernetes.kubectl import Cluster, KubectlFailed, Manifest, elsewhere
from tests.kubernetes.manifests.rendered import OVERLAYS, label, of_kind, overlay, with_component

_OLDER = {
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",  # v1 since Kubernetes 1.21
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",  # v2 since Kubernetes 1.23
}
"""What an older API server calls the same shape."""

_NEWER = {"unhealthyPodEvictionPolicy"}
"""Members of these shapes that an older API server does not know."""


def _check_schemas(manifests: list[Manifest]) -> None:
    newest = kubernetes_validate.latest_version()
    assert len(manifests) > 10
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, newest, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{label(manifest)} at {'.'.join(map(str, error.path))}: {error.message}")


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_manifest_is_valid_by_the_newest_schemas(name: str) -> None:
    _check_schemas(overlay(name))


@pytest.mark.parametrize("name", ["local", "production"])
def test_scratch_in_memory_can_be_added(name: str, tmp_path: Path) -> None:
    manifests = with_component(name, "memory-scratch", tmp_path)
    _check_schemas(manifests)
    (runner,) = (each for each in of_kind(manifests, "Deployment") if each["metadata"]["name"] == "runner")
    volumes = {volume["name"]: volume for volume in runner["spec"]["template"]["spec"]["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}


def test_a_misspelt_field_would_be_found() -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "lables": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(namespace, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_api_server_would_accept_every_manifest(name: str, cluster: Cluster) -> None:
    manifests = [_as_known(manifest, cluster) for manifest in overlay(name)]
    with cluster.namespace("services") as services, cluster.namespace("runs") as runs:
        moved = elsewhere(manifests, {"stowage": services, "stowage-runs": runs})
        cluster.apply(moved, "--dry-run=server")
        cluster.apply(of_kind(manifests, "Namespace"), "--dry-run=server")


def test_the_api_server_would_refuse_what_is_wrong(cluster: Cluster) -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "Not a name", "namespace": "default"}}
    with pytest.raises(KubectlFailed, match="Not a name"):
        cluster.apply([{**wrong, "spec": {"ports": [{"port": 1}]}}], "--dry-run=server")


def _as_known(manifest: Manifest, cluster: Cluster) -> Manifest:
    """The manifest in the newest version of its kind that the API server knows, without what that lacks."""
    key = (manifest["apiVersion"], manifest["kind"])
    if key not in _OLDER or cluster.has(*key):
        return manifest
    spec = {name: value for name, value in manifest["spec"].items() if name not in _NEWER}
    return {**manifest, "apiVersion": _OLDER[key], "spec": spec}
