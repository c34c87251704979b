"""The Job that the cluster is asked for, and what is read from what became of it."""

from typing import Any

import kubernetes_validate
import pytest

from libs.common.models import RunState
from services.runner.endings import RunFailed
from services.runner.kubernetes.causes import REPAIR_SECONDS, Seen, cause_of, not_begun
from services.runner.kubernetes.classes import JobClass
from services.runner.kubernetes.manifest import job_of, label_of
from services.runner.kubernetes.shapes import Job, Pod
from tests.unit.placements import CLASSES, LIMITS, job_settings, placement_of

_ARM = JobClass(node_selector={"kubernetes.io/arch": "arm64"})


@pytest.mark.parametrize("node_class", [None, "gpu"])
@pytest.mark.parametrize("scratch", ["disk", "memory"])
def test_the_job_is_one_by_the_newest_schema(node_class: str | None, scratch: str) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "runner-0", "uid": "1"}
    job = job_of(placement_of(node_class=node_class), job_settings(owner=owner, scratch=scratch))
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    assert job["metadata"]["ownerReferences"] == [owner]


def test_the_pod_is_restricted_and_has_nothing_but_its_token() -> None:
    pod = job_of(placement_of(), job_settings())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {variable["name"] for variable in container["env"]} == {
        "STOWAGE_RUN_ONE_URL",
        "STOWAGE_RUN_ONE_TOKEN",
        "STOWAGE_RUN_ONE_SCRATCH_DIR",
    }
    assert int(container["resources"]["limits"]["memory"]) == LIMITS.memory_bytes + 256 * 1024 * 1024
    assert all("emptyDir" in volume and volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])


def test_bundle_and_inputs_have_room_on_the_disk_of_the_node_and_what_the_job_writes_beside_them() -> None:
    def scratch(files: int = 1, inputs: int = 0) -> tuple[int, int]:
        """What is claimed, and the limit."""
        spec = job_of(placement_of(files=files, inputs=inputs), job_settings())["spec"]["template"]["spec"]
        limit = next(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume["name"] == "scratch")
        return int(spec["containers"][0]["resources"]["requests"]["ephemeral-storage"]), int(limit)

    claimed, limit = scratch()
    assert limit == claimed + LIMITS.disk_bytes
    many, room_for_many = scratch(files=100_001)
    assert many - claimed == room_for_many - limit >= 100_000 * 4096
    assert scratch(inputs=1000)[0] - claimed >= 1000 * 4097


def test_a_scratch_in_memory_is_memory_of_the_container_and_no_disk() -> None:
    def pod(scratch: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The resources of the container, and the volume."""
        spec = job_of(placement_of(), job_settings(scratch=scratch))["spec"]["template"]["spec"]
        volume = next(volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "scratch")
        return spec["containers"][0]["resources"], volume

    on_disk, disk = pod("disk")
    resources, volume = pod("memory")
    size = int(disk["sizeLimit"])
    assert disk == {"sizeLimit": str(size)}
    assert volume == {"sizeLimit": str(size), "medium": "Memory"}
    assert int(resources["limits"]["memory"]) == int(on_disk["limits"]["memory"]) + size
    assert resources["requests"] == {"cpu": "0.25", "memory": resources["limits"]["memory"]}


def test_jobs_of_a_class_are_given_what_it_has() -> None:
    def resources(node_class: str | None) -> dict[str, Any]:
        spec = job_of(placement_of(node_class=node_class), job_settings())["spec"]["template"]["spec"]
        found: dict[str, Any] = spec["containers"][0]["resources"]
        return found

    plain, of_class = resources(None), resources("gpu")
    assert of_class["limits"] == {**plain["limits"], "nvidia.com/gpu": "1", "cpu": "2"}
    assert of_class["requests"] == {**plain["requests"], "nvidia.com/gpu": "1", "cpu": "2"}


def test_jobs_that_name_no_class_are_of_the_default_one() -> None:
    def spec(node_class: str | None, default_class: str | None, *native: tuple[str, str]) -> Any:
        settings = job_settings(classes={**CLASSES, "arm": _ARM}, default_class=default_class)
        return job_of(placement_of(list(native), node_class), settings)["spec"]["template"]["spec"]

    assert spec(None, "gpu") == spec("gpu", None)
    assert spec("gpu", "arm") == spec("gpu", None)
    assert spec(None, "arm")["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
    assert spec(None, "arm", ("a/x64.node", "linux/x64/glibc")) == spec(None, "arm")


def test_nobody_moves_the_pod_so_that_a_node_gets_free() -> None:
    job = job_of(placement_of(), job_settings())
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert job["metadata"]["annotations"].items() < annotations.items()  # by the lease in them it is known


def test_the_pod_goes_where_its_class_and_its_native_code_can_be() -> None:
    def selector(*native: tuple[str, str], node_class: str | None = None) -> dict[str, str]:
        spec = job_of(placement_of(list(native), node_class), job_settings())["spec"]["template"]["spec"]
        found: dict[str, str] = spec["nodeSelector"]
        return found

    assert selector() == {"kubernetes.io/os": "linux"}
    assert selector(node_class="gpu") == {"kubernetes.io/os": "linux", "pool": "gpu"}
    x64, arm = ("a/x64.node", "linux/x64/glibc"), ("b/arm64.node", "linux/arm64/glibc")
    assert selector(x64)["kubernetes.io/arch"] == "amd64"
    assert selector(arm)["kubernetes.io/arch"] == "arm64"
    with pytest.raises(RunFailed, match="needs darwin/arm64") as refused:
        selector(("c/mac.node", "darwin/arm64"))
    assert refused.value.kind == "platform_mismatch"


@pytest.mark.parametrize(
    ("text", "label"), [("observatory", "observatory"), ("a" * 62 + "--b", "a" * 62), ("x y", "x-y")]
)
def test_labels_are_what_labels_may_be(text: str, label: str) -> None:
    assert label_of(text) == label


def _pod(status: dict[str, Any], **metadata: Any) -> Pod:
    return Pod.model_validate(
        {"metadata": {"name": "pod-1", "uid": "1", **metadata}, "spec": {"nodeName": "node-1"}, "status": status}
    )


def _job(*conditions: dict[str, str]) -> Job:
    return Job.model_validate({"metadata": {"name": "job", "uid": "2"}, "status": {"conditions": list(conditions)}})


def _container(**state: Any) -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [{"name": "run", "state": state}]}


_MISSED = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
_TO_MISS = {**_MISSED, "type": "FailureTarget"}  # its pod has not ended yet
_BACKOFF = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}
_DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for another"}
_DELETED = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("pod", "job", "taken", "state", "kind", "said"),
    [
        (
            _pod({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
            _job(),
            True,
            "lost",
            "lost",
            "low on",
        ),
        (
            _pod({"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds'}),
            _job(_BACKOFF),
            True,
            "failed",
            "disk_exceeded",
            "diskBytes",
        ),
        (
            _pod({"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "tmp" exceeds "64Mi".'}),
            _job(_BACKOFF),
            True,
            "failed",
            "disk_exceeded",
            "below TMPDIR",
        ),
        (_pod({"phase": "Running", "conditions": [_DISRUPTED]}), _job(), True, "lost", "lost", "for another"),
        (
            _pod(_container(terminated={"exitCode": 137, "reason": "OOMKilled"})),
            _job(_BACKOFF),
            True,
            "failed",
            "memory_exceeded",
            "memoryBytes",
        ),
        (
            _pod(_container(terminated={"exitCode": 137, "reason": "OOMKilled"})),
            _job(),
            False,
            "failed",
            "not_started",
            "OVERHEAD_BYTES",
        ),
        (
            _pod(_container(waiting={"reason": "CreateContainerConfigError", "message": "no such key"})),
            _job(),
            False,
            "failed",
            "not_started",
            "no such key",
        ),
        (
            _pod(_container(terminated={"exitCode": 128, "reason": "StartError", "message": "no python"})),
            _job(),
            False,
            "failed",
            "not_started",
            "no python",
        ),
        (
            _pod(_container(terminated={"exitCode": 1, "reason": "Error", "message": "the agent ends: can't"})),
            _job(_BACKOFF),
            False,
            "failed",
            "not_started",
            "the agent ends: can't",
        ),
        (_pod(_container(terminated={"exitCode": 1, "reason": "Error"})), _job(), True, "lost", "lost", "code 1"),
        (_pod(_container(running={}), deletionTimestamp=_DELETED), _job(), True, "lost", "lost", "was deleted"),
        (
            _pod(_container(running={}), deletionTimestamp=_DELETED),
            _job(_MISSED),
            True,
            "timed_out",
            "timed_out",
            "too long",
        ),
        (
            _pod(_container(running={}), deletionTimestamp=_DELETED),
            _job(_TO_MISS),
            True,
            "timed_out",
            "timed_out",
            "too long",
        ),
        (
            _pod({"phase": "Failed", "reason": "NodeLost", "message": "the node is gone"}),
            _job(),
            True,
            "lost",
            "lost",
            "the node is gone",
        ),
    ],
)
def test_the_cause_is_told(pod: Pod, job: Job, taken: bool, state: str, kind: str, said: str) -> None:
    seen = Seen("job", "stowage-runs", LIMITS, job=job, pod=pod, taken=taken)
    cause = cause_of(seen)
    assert cause is not None
    assert cause.outcome.state is RunState(state)
    assert cause.outcome.error is not None
    assert cause.outcome.error.type == kind
    assert said in cause.outcome.error.message


@pytest.mark.parametrize(
    ("reason", "kind", "settles_seconds"),
    [
        ("InvalidImageName", "image_unavailable", 0.0),
        ("ErrImageNeverPull", "image_unavailable", 0.0),
        ("ErrImagePull", "image_unavailable", REPAIR_SECONDS),
        ("ImagePullBackOff", "image_unavailable", REPAIR_SECONDS),
        ("RegistryUnavailable", "image_unavailable", REPAIR_SECONDS),
        ("ImageInspectError", "image_unavailable", REPAIR_SECONDS),
        ("CreateContainerConfigError", "not_started", REPAIR_SECONDS),
        ("CreateContainerError", "not_started", REPAIR_SECONDS),
        ("RunContainerError", "not_started", REPAIR_SECONDS),
    ],
)
def test_what_the_kubelet_may_repair_has_to_last(reason: str, kind: str, settles_seconds: float) -> None:
    pod = _pod({**_container(waiting={"reason": reason, "message": "no"}), "phase": "Pending"})
    cause = cause_of(Seen("job", "stowage-runs", LIMITS, job=_job(), pod=pod))
    assert cause is not None
    assert cause.settles_seconds == settles_seconds
    assert cause.outcome.error is not None
    assert cause.outcome.error.type == kind
    assert f"{reason}: no" in cause.outcome.error.message


def test_a_pod_that_has_failed_is_repaired_by_nobody() -> None:
    waiting = _container(waiting={"reason": "ImagePullBackOff"})
    pod = _pod({**waiting, "phase": "Failed", "reason": "NodeShutdown", "message": "the node goes down"})
    cause = cause_of(Seen("job", "stowage-runs", LIMITS, job=_job(), pod=pod))
    assert cause is not None
    assert cause.settles_seconds < REPAIR_SECONDS
    assert cause.outcome.state is RunState.LOST


@pytest.mark.parametrize(
    "pod",
    [
        _pod({"phase": "Pending"}),
        _pod(_container(waiting={"reason": "ContainerCreating"})),
        _pod(_container(running={})),
        _pod(_container(waiting={}), deletionTimestamp=_DELETED),  # Kubernetes makes another
    ],
)
def test_what_may_still_begin_is_over_for_nobody(pod: Pod) -> None:
    assert cause_of(Seen("job", "stowage-runs", LIMITS, job=_job(), pod=pod)) is None


@pytest.mark.parametrize(
    ("pod", "kind", "said"),
    [
        (None, "not_started", "got no pod"),
        (
            _pod({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available."}]}),
            "unschedulable",
            "0/3 nodes are available.",
        ),
        (
            _pod({**_container(waiting={"reason": "ErrImagePull"}), "phase": "Pending"}),
            "image_unavailable",
            "ErrImagePull",
        ),
        (
            _pod({**_container(waiting={"reason": "ContainerCreating", "message": "mounting"}), "phase": "Pending"}),
            "not_started",
            "mounting",
        ),
        (_pod(_container(running={})), "not_started", "STOWAGE_RUNNER_ADVERTISED_URL"),
    ],
)
def test_why_nothing_has_begun_is_told(pod: Pod | None, kind: str, said: str) -> None:
    outcome = not_begun(Seen("job", "stowage-runs", LIMITS, job=_job(), pod=pod), 300, "http://runner")
    assert outcome.error is not None
    assert outcome.error.type == kind
    assert said in outcome.error.message
