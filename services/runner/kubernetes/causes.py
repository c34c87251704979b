"""What became of the Job of an attempt, in words: why its pod does not begin, or has ended.

Whether an attempt failed or was lost is told by whether trying again may help without anybody doing anything: a pod
that was evicted or deleted, or whose node is gone, is `lost`, like a runner that is. What the job itself did to its pod
is a failure, in the words that are used where it is a process.
"""

import re
from dataclasses import dataclass

from libs.common.models import RunState
from services.runner.endings import Outcome
from services.runner.kubernetes.shapes import TMP_VOLUME, Job, Pod, Terminated, Waiting
from services.runner.limits import JobLimits
from services.runner.metering import memory_exceeded

REPAIR_SECONDS = 45.0
"""So long what keeps a container from starting may pass: the kubelet tries again 10 and 30 s after the first time."""

_SETTLED_SECONDS = 3.0
_ROOM = "Let STOWAGE_RUNNER_CONCURRENCY times the number of runners stay below the namespace's quota, or raise that."
_FINAL_IMAGE_REASONS = {"InvalidImageName", "ErrImageNeverPull"}
_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "ImageInspectError",
    "SignatureValidationFailed",
}
_CONTAINER_REASONS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
    "PostStartHookError",
}
_EMPTY_DIR = re.compile(r'EmptyDir volume "([^"]*)"')
_NOT_STARTED_REASONS = {"ContainerCannotRun", "StartError"}
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Cause:
    """Why nothing more comes of an attempt, once that has been so for `settles_seconds`.

    Until then it may pass, or turn out to be the effect of another that is still to be told.
    """

    outcome: Outcome
    settles_seconds: float = 0.0


@dataclass(slots=True)
class Seen:
    """What is known of an attempt's Job and pod. `taken`: its agent has taken the attempt."""

    name: str
    namespace: str
    limits: JobLimits
    job: Job | None = None
    job_gone: bool = False
    pod: Pod | None = None
    pod_gone: bool = False
    taken: bool = False

    def told(self) -> str:
        """What and where it is."""
        if self.pod is None:
            return f"the Job {self.namespace}/{self.name}"
        node = f" on the node {self.pod.spec.node_name}" if self.pod.spec.node_name else ""
        return f"the pod {self.namespace}/{self.pod.metadata.name}{node}"


def cause_of(seen: Seen) -> Cause | None:
    """Why nothing more comes of it, or will not where it stays as it is; None where all goes well so far."""
    failure = seen.job.failure if seen.job is not None else None
    if failure is not None and failure.reason == "DeadlineExceeded":
        message = (
            "The Job of the run was ended at its deadline, which is an hour after the run's own limit would have ended "
            f"it: {failure.message}."
        )
        return Cause(Outcome.failed("timed_out", message, state=RunState.TIMED_OUT))
    found = _of_pod(seen, seen.pod) if seen.pod is not None else None
    if found is not None and found.settles_seconds == 0:
        return found
    if seen.job_gone:
        return Cause(
            Outcome.lost(f"Somebody deleted the Job {seen.namespace}/{seen.name} while it went."), _SETTLED_SECONDS
        )
    if found is None and failure is not None:
        found = Cause(
            Outcome.lost(f"The Job of {seen.told()} failed: {failure.reason}: {failure.message}"), _SETTLED_SECONDS
        )
    return found


def not_made(seconds: float, trouble: str) -> Outcome:
    """Why there is no Job within so many seconds: `trouble` is what was said last to whoever asked for it."""
    message = (
        f"The Job of the run could not be made within {seconds:g} seconds. What the API server of the cluster, or the "
        f"way to it, said last: {trouble}."
    )
    if is_over_quota(trouble):
        message += f" The namespace has no room for it. {_ROOM}"
    return Outcome.failed("not_started", message)


def is_over_quota(message: str) -> bool:
    """Whether that is how an API server refuses what a ResourceQuota has no room for."""
    return "exceeded quota" in message


def not_begun(seen: Seen, seconds: float, url: str) -> Outcome:
    """Why its agent has not come within so many seconds, as far as can be told."""
    if (cause := cause_of(seen)) is not None:  # there was no time for it to settle
        return cause.outcome
    after = f"within {seconds:g} seconds, STOWAGE_RUNNER_KUBERNETES_START_SECONDS"
    pod = seen.pod
    if pod is None:
        return Outcome.failed(
            "not_started",
            f"The Job {seen.namespace}/{seen.name} got no pod {after}. See kubectl -n {seen.namespace} describe job "
            f"{seen.name}: a quota or an admission rule of the namespace may refuse it. {_ROOM}",
        )
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return Outcome.failed(
            "unschedulable",
            f"No node took {seen.told()} {after}: {_shown(scheduled.message)} Give the cluster more nodes, or let the "
            "job want less: “memoryBytes”, “nodeClass”.",
        )
    waiting = pod.container.waiting
    if pod.status.phase == "Pending":
        reason = f": {waiting.reason} {_shown(waiting.message)}" if waiting is not None and waiting.reason else ""
        return Outcome.failed("not_started", f"The container of {seen.told()} was not started {after}{reason}.")
    return Outcome.failed(
        "not_started",
        f"The agent of {seen.told()} did not come to {url} {after}. Check that pods reach the runner there, "
        "STOWAGE_RUNNER_ADVERTISED_URL.",
    )


def _of_pod(seen: Seen, pod: Pod) -> Cause | None:
    disruption = pod.condition("DisruptionTarget")
    if pod.status.reason == "Evicted":
        return Cause(_evicted(seen, pod))
    terminated = pod.container.terminated
    if terminated is not None and terminated.reason == "OOMKilled":
        return Cause(_out_of_memory(seen))
    if disruption is not None and disruption.status == "True":
        message = f"{_sentence(seen)} was taken away: {disruption.reason}: {_shown(disruption.message)}"
        return Cause(Outcome.lost(message))
    waiting = pod.container.waiting
    if waiting is not None and pod.status.phase != "Failed" and (cause := _of_waiting(seen, waiting)) is not None:
        return cause
    if terminated is not None and terminated.reason in _NOT_STARTED_REASONS:
        message = f"The container of {seen.told()} could not be started: {_shown(terminated.message)}"
        return Cause(Outcome.failed("not_started", message))
    if seen.taken and (seen.pod_gone or pod.metadata.deletion_timestamp is not None):
        return Cause(Outcome.lost(_deleted(seen, pod)), _SETTLED_SECONDS)
    if terminated is not None:
        return Cause(_ended(seen, terminated), _SETTLED_SECONDS)
    if pod.status.phase == "Failed":
        message = (
            f"{_sentence(seen)} failed: {pod.status.reason or 'it does not say why'}: {_shown(pod.status.message)}"
        )
        return Cause(Outcome.lost(message), _SETTLED_SECONDS)
    return None


def _of_waiting(seen: Seen, waiting: Waiting) -> Cause | None:
    """Why its container is not there, where that is more than that it takes its time."""
    if waiting.reason in _FINAL_IMAGE_REASONS:
        return Cause(_image(seen, waiting))
    if waiting.reason in _IMAGE_REASONS:
        return Cause(_image(seen, waiting), REPAIR_SECONDS)
    if waiting.reason in _CONTAINER_REASONS:
        message = f"The container of {seen.told()} can't be started: {waiting.reason}: {_shown(waiting.message)}"
        return Cause(Outcome.failed("not_started", message), REPAIR_SECONDS)
    return None


def _evicted(seen: Seen, pod: Pod) -> Outcome:
    message = _shown(pod.status.message)
    volume = _EMPTY_DIR.search(message)
    if volume is not None or "ephemeral local storage" in message:
        return Outcome.failed(
            "disk_exceeded",
            f"The run wrote more than its pod may, and was ended: {message} {_less_disk(volume and volume[1])}",
        )
    return Outcome.lost(f"{_sentence(seen)} was evicted: {message}")


def _less_disk(volume: str | None) -> str:
    """What to do about a volume that was full, or about all that the pod wrote."""
    if volume == TMP_VOLUME:
        return "The /tmp of the pod is small, whatever the job's limits are. Let the job write below TMPDIR."
    return "Write less, delete what is done with, or raise “diskBytes” in the job's limits."


def _out_of_memory(seen: Seen) -> Outcome:
    if not seen.taken:
        return Outcome.failed(
            "not_started",
            f"The container of {seen.told()} had too little memory to begin (OOMKilled). Raise "
            "STOWAGE_RUNNER_KUBERNETES_OVERHEAD_BYTES.",
        )
    failure = memory_exceeded(seen.limits)
    return Outcome.failed(failure.kind, f"{failure} The kernel ended the container of {seen.told()} (OOMKilled).")


def _image(seen: Seen, waiting: Waiting) -> Outcome:
    return Outcome.failed(
        "image_unavailable",
        f"The image of {seen.told()} can't be had: {waiting.reason}: {_shown(waiting.message)} Check "
        "STOWAGE_RUNNER_KUBERNETES_IMAGE, and that the node can fetch it.",
    )


def _deleted(seen: Seen, pod: Pod) -> str:
    why = f" {pod.status.reason}: {_shown(pod.status.message)}" if pod.status.reason else ""
    return f"{_sentence(seen)} was deleted while it went: by hand, by an eviction, or since its node is gone.{why}"


def _ended(seen: Seen, terminated: Terminated) -> Outcome:
    said = f" It said: {_shown(terminated.message)}" if terminated.message else ""
    message = f"The container of {seen.told()} ended with code {terminated.exit_code} before the run had.{said}"
    return Outcome.lost(message) if seen.taken else Outcome.failed("not_started", message)


def _sentence(seen: Seen) -> str:
    told = seen.told()
    return f"{told[0].upper()}{told[1:]}"


def _shown(message: str) -> str:
    """The end of a message: what a program printed last says most."""
    message = " ".join(message.split())
    return message if len(message) <= _SHOWN else f"…{message[-_SHOWN:]}"
