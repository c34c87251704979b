"""A cluster as the place where agents are started: each in the pod of a Job of its own."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from libs.common.log import get_logger
from services.runner.endings import Outcome
from services.runner.kubernetes.causes import Seen, cause_of, is_over_quota, not_begun, not_made
from services.runner.kubernetes.cluster import Cluster, ClusterAway, ClusterError, ClusterRefused
from services.runner.kubernetes.manifest import JobSettings, job_name, job_of, label_of
from services.runner.kubernetes.pauses import Pauses
from services.runner.kubernetes.shapes import (
    COMMON_LABELS,
    JOB_NAME_LABEL,
    LEASE_ANNOTATION,
    RUN_LABEL,
    RUNNER_LABEL,
    Job,
    Pod,
)
from services.runner.kubernetes.watched import Watched
from services.runner.remote.claims import AGENT_PATH
from services.runner.remote.place import Held, Placement
from services.runner.settings import RunnerSettings

_LONGEST_PAUSE_SECONDS = 10.0
_LEAVE_SECONDS = 10.0
_END_SECONDS = 5.0
_UNSURE_SECONDS = 30.0
"""So long a refusal of who asks may be the API server's own beginning: it knows no rights before it has read them."""

_log = get_logger("runner")


class JobAgent:
    """An agent in the pod of a Job. Its Job is known by its name and the lease: another's may have had that name."""

    def __init__(self, seen: Seen, lease: str, settings: JobSettings, cluster: Cluster) -> None:
        self.seen = seen
        self.lease = lease
        self._settings = settings
        self._cluster = cluster
        self._pods: dict[str, Pod] = {}
        self._changed = asyncio.Event()
        self._refused: Outcome | None = None
        self._trouble: str | None = None

    def taken(self, name: str) -> None:
        """Its agent is in the pod of this name. Another one that the Job gets is of no interest any more."""
        self.seen.taken = True
        self.seen.pod = self._pods.get(name, self.seen.pod)
        self._changed.set()

    async def over(self) -> Outcome:
        """Wait until nothing more can come of it, and say why.

        How long a cause has been there counts from the first that has to settle for as long: while one fetches an
        image, the reason that there is none changes to and fro.
        """
        loop = asyncio.get_running_loop()
        until: float | None = None
        settles_seconds = 0.0
        while True:
            self._changed.clear()
            if self._refused is not None:
                return self._refused
            cause = cause_of(self.seen)
            if cause is None:
                until = None
            elif until is None or cause.settles_seconds != settles_seconds:
                settles_seconds = cause.settles_seconds
                until = loop.time() + settles_seconds
            if cause is not None and until is not None and loop.time() >= until:
                return cause.outcome
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._changed.wait()

    async def look(self) -> None:
        """Read Job and pods as they are. The watch begins again after pauses, and may be late to tell of them."""
        try:
            body = await self._cluster.job(self.seen.name)
            bodies, _ = await self._cluster.list("Pod", _selector({JOB_NAME_LABEL: self.seen.name}))
            job = Job.model_validate(body) if body is not None else None
            pods = [Pod.model_validate(body) for body in bodies]
        except (ClusterError, ValidationError) as error:
            _log.warning("job_not_looked_at", job=self.seen.name, error=str(error))
            return
        there = {pod.metadata.uid for pod in pods}
        for pod in [pod for pod in self._pods.values() if pod.metadata.uid not in there]:
            self.hear_of_pod(pod, gone=True)
        for pod in pods:
            if self.owns(pod):
                self.hear_of_pod(pod, gone=False)
        if job is not None and self.owns(job):
            self.hear_of_job(job, gone=False)
        elif self.seen.job is not None:
            self.hear_of_job(self.seen.job, gone=True)

    def owns(self, item: Job | Pod) -> bool:
        """Whether a Job or pod of the name is its own."""
        return item.metadata.annotations.get(LEASE_ANNOTATION) == self.lease

    def not_begun(self, seconds: float) -> Outcome:
        """Why its agent has not come within so many seconds."""
        if self.seen.job is None and self._trouble is not None:
            return not_made(seconds, self._trouble)
        return not_begun(self.seen, seconds, self._settings.url)

    def told(self) -> str:
        """What it is, and where."""
        return self.seen.told()

    def refuse(self, outcome: Outcome) -> None:
        """It can't be started."""
        self._refused = outcome
        self._changed.set()

    def note_trouble(self, trouble: str) -> None:
        """It could not be had of the API server just now, and is asked for again."""
        self._trouble = trouble

    def learn_of_job(self, job: Job) -> None:
        """Its Job is there. What the watch says of it, before or after this, is newer."""
        if self.seen.job is None:
            self.hear_of_job(job, gone=False)

    def hear_of_job(self, job: Job, *, gone: bool) -> None:
        """Its Job has changed."""
        self.seen.job, self.seen.job_gone = job, gone
        self._changed.set()

    def hear_of_pod(self, pod: Pod, *, gone: bool) -> None:
        """One of its pods has changed. Kubernetes may make another for one that was deleted before it began."""
        self._pods[pod.metadata.name] = pod
        seen = self.seen
        if seen.taken:
            if seen.pod is None or seen.pod.metadata.name == pod.metadata.name:
                seen.pod, seen.pod_gone = pod, gone
        elif gone:
            del self._pods[pod.metadata.name]
            seen.pod = max(self._pods.values(), key=_age, default=None)
        else:
            seen.pod = max(self._pods.values(), key=_age)
        self._changed.set()


class KubernetesPlace:
    """Makes Jobs, watches what becomes of them, and deletes them."""

    def __init__(self, cluster: Cluster, settings: JobSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._agents: dict[str, JobAgent] = {}
        self._deletions: set[asyncio.Task[None]] = set()
        selector = _selector({**COMMON_LABELS, RUNNER_LABEL: settings.runner})
        self._jobs = Watched(cluster, "Job", Job.model_validate, selector, self._hear_of_job)
        self._pods = Watched(cluster, "Pod", Pod.model_validate, selector, self._hear_of_pod)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch for as long as the context is open; at its end wait a little for what is still to be deleted."""
        async with self._jobs.watching(), self._pods.watching():
            try:
                yield
            finally:
                if self._deletions:
                    await asyncio.wait(self._deletions, timeout=_LEAVE_SECONDS)
                for task in self._deletions:
                    task.cancel()

    @contextlib.asynccontextmanager
    async def placed(self, placement: Placement) -> AsyncIterator[JobAgent]:
        """A Job, which is being made. RunFailed where its bundle can run on no node that there could be."""
        body = job_of(placement, self._settings)
        name = job_name(placement.order.run_id, placement.order.attempt)
        seen = Seen(name, self._settings.namespace, placement.limits)
        agent = JobAgent(seen, placement.lease, self._settings, self._cluster)
        self._agents[name] = agent
        creation = asyncio.create_task(self._create(agent, name, body))
        try:
            yield agent
        finally:
            creation.cancel()
            await asyncio.gather(creation, return_exceptions=True)
            del self._agents[name]
            deletion = asyncio.create_task(self._delete(name))
            self._deletions.add(deletion)
            deletion.add_done_callback(self._deletions.discard)

    async def sweep(self, held: Held) -> None:
        """Delete Jobs whose attempt is over, or was lost by the runner that made it. Those of runs that are not known
        here are another installation's.
        """
        try:
            bodies, _ = await self._cluster.list("Job", _selector(COMMON_LABELS))
            jobs = [Job.model_validate(body) for body in bodies]
            leases = await held({job.metadata.labels.get(RUN_LABEL, "") for job in jobs})
            for job in jobs:
                run, lease = job.metadata.labels.get(RUN_LABEL, ""), job.metadata.annotations.get(LEASE_ANNOTATION)
                if run in leases and leases[run] != lease and job.metadata.deletion_timestamp is None:
                    await self._cluster.delete_job(job.metadata.name, uid=job.metadata.uid)
                    _log.info("job_swept", job=job.metadata.name, run=run)
        except (ClusterError, ValidationError) as error:
            _log.warning("jobs_not_swept", error=str(error))

    async def _create(self, agent: JobAgent, name: str, body: Mapping[str, Any]) -> None:
        try:
            await self._until_made(agent, name, body)
        except ClusterRefused as error:
            agent.refuse(_refused(error))
        except Exception as error:  # noqa: BLE001  # whatever it was, the attempt is not to wait for it
            _log.exception("job_not_made", job=name)
            agent.refuse(Outcome.failed("not_started", f"The Job of the run could not be made: {error}"))

    async def _until_made(self, agent: JobAgent, name: str, body: Mapping[str, Any]) -> None:
        """Ask for the Job until it is there. ClusterRefused where it never will be."""
        pauses = Pauses(_LONGEST_PAUSE_SECONDS)
        loop = asyncio.get_running_loop()
        unsure_until = loop.time() + _UNSURE_SECONDS
        while True:
            retry_after_seconds = None
            try:
                made = await self._cluster.create_job(body)
                agent.learn_of_job(Job.model_validate(made))
                return
            except ClusterAway as error:
                retry_after_seconds = error.retry_after_seconds
                trouble = str(error)
            except ClusterRefused as error:
                trouble = f"{error.message or error.reason} ({error.status})"
                if error.reason == "AlreadyExists":
                    if await self._is_there(agent, name):
                        return
                elif not _may_pass(error, unsure=loop.time() < unsure_until):
                    raise
            agent.note_trouble(trouble)
            _log.warning("job_not_made_yet", job=name, error=trouble)
            await asyncio.sleep(pauses.next(retry_after_seconds))

    async def _is_there(self, agent: JobAgent, name: str) -> bool:
        """Whether the Job that has the name is the one that is wanted: an answer was lost. Another one is deleted."""
        try:
            body = await self._cluster.job(name)
            if body is None:
                return False
            job = Job.model_validate(body)
            if agent.owns(job):
                agent.learn_of_job(job)
                return True
            await self._cluster.delete_job(name, uid=job.metadata.uid)
        except ClusterError as error:
            _log.warning("job_not_looked_at", job=name, error=str(error))
        return False

    async def _delete(self, name: str) -> None:
        pauses = Pauses(_LONGEST_PAUSE_SECONDS)
        while True:
            try:
                await self._cluster.delete_job(name)
                return
            except ClusterAway as error:
                _log.warning("job_not_deleted_yet", job=name, error=str(error))
                seconds = pauses.next(error.retry_after_seconds)
            except Exception as error:  # noqa: BLE001  # whatever it was, sweeping deletes the Job later
                _log.warning("job_not_deleted", job=name, error=str(error))
                return
            await asyncio.sleep(seconds)

    def _hear_of_job(self, job: Job, gone: bool) -> None:  # noqa: FBT001  # as it is called
        agent = self._agents.get(job.metadata.name)
        if agent is not None and agent.owns(job):
            agent.hear_of_job(job, gone=gone)

    def _hear_of_pod(self, pod: Pod, gone: bool) -> None:  # noqa: FBT001  # as it is called
        agent = self._agents.get(pod.metadata.labels.get(JOB_NAME_LABEL, ""))
        if agent is not None and agent.owns(pod):
            agent.hear_of_pod(pod, gone=gone)


@contextlib.asynccontextmanager
async def open_cluster(settings: RunnerSettings) -> AsyncIterator[KubernetesPlace]:
    """The cluster of these settings, as a place for agents. SettingsError where there is no way to it."""
    async with Cluster.open(settings.kubernetes_config, settings.kubernetes_namespace) as cluster:
        host = socket.gethostname()
        place = KubernetesPlace(cluster, _job_settings(settings, host, await cluster.own_pod(host)))
        async with place.watching():
            yield place


def _job_settings(settings: RunnerSettings, host: str, pod: Mapping[str, Any] | None) -> JobSettings:
    owner = None
    if pod is not None:
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    return JobSettings(
        namespace=settings.kubernetes_namespace,
        image=settings.kubernetes_image or "",
        pull_policy=settings.kubernetes_pull_policy,
        service_account=settings.kubernetes_service_account,
        start_seconds=settings.kubernetes_start_seconds,
        kill_seconds=settings.abort_seconds + settings.kill_seconds + _END_SECONDS,
        classes=settings.kubernetes_classes,
        default_class=settings.kubernetes_default_class,
        cpus=settings.kubernetes_cpus,
        overhead_bytes=settings.kubernetes_overhead_bytes,
        scratch=settings.kubernetes_scratch,
        url=f"{(settings.advertised_url or '').rstrip('/')}{AGENT_PATH}",
        runner=label_of(host),
        platform_check=settings.platform_check,
        owner=owner,
    )


def _may_pass(error: ClusterRefused, *, unsure: bool) -> bool:
    """Whether the same request may be granted a moment later."""
    if error.status == HTTPStatus.CONFLICT:  # of two that change one quota at a time, the API server refuses one
        return True
    if is_over_quota(error.message):  # the Jobs of other runs end
        return True
    return unsure and error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def _refused(error: ClusterRefused) -> Outcome:
    return Outcome.failed(
        "job_refused",
        f"The cluster refuses the Job of the run: {error.message or error.reason} ({error.status}). Check "
        "STOWAGE_RUNNER_KUBERNETES_NAMESPACE, the rights of the runner's service account, and admission rules.",
    )


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _age(pod: Pod) -> tuple[str, str]:
    """The later it was made the greater."""
    made = pod.metadata.creation_timestamp
    return (made.isoformat() if made is not None else "", pod.metadata.name)
