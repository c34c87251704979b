"""The Job of an attempt, as the cluster is asked for it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from libs.common.models import NativeFile
from libs.common.native import Platform, by_package, can_load
from services.runner.compatibility import require_platform
from services.runner.kubernetes.classes import JobClass
from services.runner.kubernetes.shapes import (
    ATTEMPT_LABEL,
    COMMON_LABELS,
    CONTAINER,
    LEASE_ANNOTATION,
    NETWORK_LABEL,
    RUN_LABEL,
    RUNNER_LABEL,
    SLUG_LABEL,
    TMP_VOLUME,
)
from services.runner.remote.place import Placement

_MIB = 1024 * 1024
_USER = 10001
_TMP_BYTES = 64 * _MIB
_SCRATCH_MARGIN_BYTES = 64 * _MIB
_BLOCK_BYTES = 4096
_BLOCKS_PER_FILE = 2
_DEADLINE_MARGIN_SECONDS = 3600
_TTL_SECONDS = 300
_MAX_LABEL = 63

_UNDISTURBED = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations of pods that must not be moved so that a node gets free: their run would begin anew."""

_ARCHITECTURES = {
    "amd64": Platform("linux", "x64", "glibc"),
    "arm64": Platform("linux", "arm64", "glibc"),
}
"""Of nodes, in Kubernetes' words, and what bundles can need of them."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What all Jobs of a runner have in common. `runner` is its name, `owner` a reference to its pod, if it may own."""

    namespace: str
    image: str
    pull_policy: str
    service_account: str
    start_seconds: float
    kill_seconds: float
    classes: Mapping[str, JobClass]
    default_class: str | None
    cpus: float
    overhead_bytes: int
    scratch: Literal["disk", "memory"]
    url: str
    runner: str
    platform_check: bool
    owner: Mapping[str, Any] | None


def job_name(run_id: str, attempt: int) -> str:
    """The same for the same attempt, so that a Job that is asked for twice is one."""
    return f"{run_id.replace('_', '-')}-{attempt}"


def job_of(placement: Placement, settings: JobSettings) -> dict[str, Any]:
    """The manifest. RunFailed where the bundle can run on no node that there could be."""
    order = placement.order
    labels = {
        **COMMON_LABELS,
        RUN_LABEL: order.run_id,
        ATTEMPT_LABEL: str(order.attempt),
        SLUG_LABEL: label_of(order.slug),
        RUNNER_LABEL: settings.runner,
        NETWORK_LABEL: "true" if placement.network else "false",
    }
    annotations = {LEASE_ANNOTATION: placement.lease}
    metadata = {
        "name": job_name(order.run_id, order.attempt),
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": annotations,
        **({"ownerReferences": [dict(settings.owner)]} if settings.owner is not None else {}),
    }
    deadline = settings.start_seconds + placement.timeout_seconds + settings.kill_seconds + _DEADLINE_MARGIN_SECONDS
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,  # whether it is tried again is the run's business
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": round(deadline),
            "ttlSecondsAfterFinished": _TTL_SECONDS,
            "template": {
                "metadata": {"labels": labels, "annotations": {**annotations, **_UNDISTURBED}},
                "spec": _pod_of(placement, settings),
            },
        },
    }


def _pod_of(placement: Placement, settings: JobSettings) -> dict[str, Any]:
    node_class = _class_of(placement, settings)
    natives = placement.order.artifact.native if settings.platform_check else []
    selector = {"kubernetes.io/os": "linux", **_architecture(natives), **node_class.node_selector}
    return {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": round(settings.kill_seconds),
        "nodeSelector": selector,
        "tolerations": list(node_class.tolerations),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container_of(placement, settings, node_class)],
        "volumes": [
            {
                "name": "scratch",
                "emptyDir": {
                    "sizeLimit": str(_scratch_bytes(placement)),
                    **({"medium": "Memory"} if settings.scratch == "memory" else {}),
                },
            },
            {"name": TMP_VOLUME, "emptyDir": {"sizeLimit": str(_TMP_BYTES)}},
        ],
    }


def _class_of(placement: Placement, settings: JobSettings) -> JobClass:
    name = placement.order.limits.node_class or settings.default_class
    return settings.classes[name] if name is not None else JobClass()


def _scratch_bytes(placement: Placement) -> int:
    """All that may be in the scratch directory."""
    return _given_bytes(placement) + placement.limits.disk_bytes


def _given_bytes(placement: Placement) -> int:
    """What bundle and inputs take of a disk at most. Each file fills its last block in part, and its directory takes
    one; what the job writes is counted in blocks anyway.
    """
    artifact, inputs = placement.order.artifact, placement.inputs
    rounding = (artifact.file_count + inputs.files) * _BLOCKS_PER_FILE * _BLOCK_BYTES
    return artifact.unpacked_size + inputs.size + rounding + _SCRATCH_MARGIN_BYTES


def _container_of(placement: Placement, settings: JobSettings, node_class: JobClass) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", "services.runner", "run-one"],
        "env": [
            {"name": "STOWAGE_RUN_ONE_URL", "value": settings.url},
            {"name": "STOWAGE_RUN_ONE_TOKEN", "value": placement.token},
            {"name": "STOWAGE_RUN_ONE_SCRATCH_DIR", "value": "/scratch"},
        ],
        "resources": _resources_of(placement, settings, node_class),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": TMP_VOLUME, "mountPath": "/tmp"}],  # noqa: S108
    }


def _resources_of(placement: Placement, settings: JobSettings, node_class: JobClass) -> dict[str, Any]:
    memory_bytes = placement.limits.memory_bytes + settings.overhead_bytes
    disk = {}
    if settings.scratch == "memory":
        memory_bytes += _scratch_bytes(placement)  # what is written there counts as the container's memory
    else:
        disk = {"ephemeral-storage": str(_given_bytes(placement))}  # that much it writes; few write all that they may
    memory = {"memory": str(memory_bytes)}
    return {
        "requests": {"cpu": f"{settings.cpus:g}", **memory, **disk, **node_class.resources},
        "limits": {**memory, **node_class.resources},
    }


def _architecture(natives: Iterable[NativeFile]) -> dict[str, str]:
    """The architecture that a node must have; none where any will do."""
    natives = list(natives)
    packages = by_package((file.path, file.platform) for file in natives)
    fit = [
        name for name, platform in _ARCHITECTURES.items() if all(can_load(package, platform) for package in packages)
    ]
    if not fit:
        require_platform(natives, _ARCHITECTURES["amd64"])
    return {"kubernetes.io/arch": fit[0]} if len(fit) == 1 else {}


def label_of(text: str) -> str:
    """As much of `text` as the value of a label may be."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:_MAX_LABEL].strip("-_.")
