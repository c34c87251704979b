"""Attempts that are to be Jobs, and what a runner wants of all its Jobs."""

from typing import Any

from libs.common.models import Artifact, Limits
from services.runner.holder import Order
from services.runner.kubernetes.classes import JobClass
from services.runner.kubernetes.manifest import JobSettings
from services.runner.remote.place import Contents, Placement
from services.runner.settings import RunnerSettings

LIMITS = RunnerSettings.model_construct().job_limits()
CLASSES = {
    "gpu": JobClass(
        node_selector={"pool": "gpu"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        resources={"nvidia.com/gpu": "1", "cpu": "2"},
    )
}


def job_settings(**more: Any) -> JobSettings:
    """Settings like those of a runner in a cluster."""
    values: dict[str, Any] = {
        "namespace": "stowage-runs",
        "image": "stowage/runner:0.1.0",
        "pull_policy": "IfNotPresent",
        "service_account": "stowage-run",
        "start_seconds": 300.0,
        "kill_seconds": 11.0,
        "classes": CLASSES,
        "default_class": None,
        "cpus": 0.25,
        "overhead_bytes": 256 * 1024 * 1024,
        "scratch": "disk",
        "url": "http://10.0.0.1:7103/internal/attempt",
        "runner": "runner-0",
        "platform_check": True,
        "owner": None,
    }
    return JobSettings(**{**values, **more})


def placement_of(
    native: list[tuple[str, str]] | None = None, node_class: str | None = None, files: int = 1, inputs: int = 0
) -> Placement:
    """The second attempt at a run, whose bundle has so many files, and this native code; it is given small inputs."""
    artifact = Artifact.model_validate(
        {
            "digest": "sha256:" + "0" * 64,
            "contentDigest": "sha256:" + "0" * 64,
            "objectKey": "artifacts/none",
            "size": 1,
            "unpackedSize": 1,
            "fileCount": files,
            "compression": "zstd",
            "platforms": [],
            "native": [{"path": path, "platform": platform} for path, platform in native or []],
            "manifest": {},
            "createdAt": "2026-01-01T00:00:00Z",
        }
    )
    limits = Limits(node_class=node_class)
    order = Order("run_01a2", 2, "a-slug-" + "x" * 80, "1.0.0", artifact.digest, artifact, limits, {})
    return Placement(order, "lease", LIMITS, 60.0, Contents(inputs, inputs), network=True, token="secret")
