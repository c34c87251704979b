"""What becomes of a run whose pod can't begin, or ends before the run does: the right state, and the cause in words."""

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from libs.common.models import AttemptState, RunState
from tests.backend import Backend, fresh_backend
from tests.kubernetes.executor.cluster import PATIENCE_SECONDS, Namespace, Where
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish, python
from tests.runner.running import RunningRunner, running_runner
from tests.servers import Servers

pytestmark = pytest.mark.timeout(3 * PATIENCE_SECONDS)

_WAITS_ONCE = """
export async function handler(context) {
    context.logger("attempt " + context.run.attempt);
    if (context.run.attempt === 1) await new Promise((resolve) => setTimeout(resolve, 600000));
    return context.run.attempt;
}
"""

_RETURNS = "export const handler = () => 'done';"

Start = Callable[..., Any]


@pytest.fixture
async def other(
    servers: Servers, where: Where, on_cluster: dict[str, Any], tmp_path: Any
) -> AsyncIterator[Callable[..., Any]]:
    """Starts a runner with settings of the test's own, and a database of its own: no other takes its runs."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> tuple[RunningRunner, RunningRegistry]:
            backend: Backend = await stack.enter_async_context(fresh_backend(servers))
            registry = await stack.enter_async_context(running_registry(backend))
            runner = await stack.enter_async_context(
                running_runner(
                    backend, registry, tmp_path / "scratch", address=where.address, **{**on_cluster, **settings}
                )
            )
            return runner, registry

        yield start


async def _error_of(started: tuple[RunningRunner, RunningRegistry], **limits: Any) -> Any:
    """The error of a run that is tried once."""
    runner, registry = started
    await publish(registry, node(_RETURNS))
    definition = {"bundle": "hello@latest", "limits": limits, "retry": {"attempts": 1}}
    assert (await registry.request("PUT", "/jobs/once", json=definition)).status in (200, 201)
    answer = await runner.request("POST", "/runs", json={"job": "once"})
    run = await runner.finished(answer.json["id"], seconds=PATIENCE_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    return run.error


async def _lost_once(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace, harm: Callable[[Any], Any]
) -> str:
    """A run that waits at its first attempt, until somebody does `harm` to its pod; what is said of that attempt."""
    await publish(registry, node(_WAITS_ONCE))
    run = await runner.start()
    await runner.in_state(run.id, "running", seconds=PATIENCE_SECONDS)
    pod = await namespace.pod_of(run.id, lambda found: found["status"]["phase"] == "Running")
    await harm(pod)
    ended = await runner.finished(run.id, seconds=PATIENCE_SECONDS)
    assert (ended.state, ended.result, ended.attempts) == (RunState.SUCCEEDED, 2, 2)
    attempts = (await runner.request("GET", f"/runs/{run.id}/attempts")).json["items"]
    assert attempts[0]["state"] == AttemptState.LOST
    assert attempts[0]["error"]["type"] == "lost"
    message: str = attempts[0]["error"]["message"]
    assert message in await runner.log(run.id)
    await namespace.empty()
    return message


async def test_a_run_whose_pod_is_deleted_is_lost_and_tried_again(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    said = await _lost_once(runner, registry, namespace, lambda pod: namespace.delete_pod(pod["metadata"]["name"]))
    assert "was deleted while it went" in said


async def test_a_run_whose_pod_is_evicted_is_lost_and_tried_again(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    said = await _lost_once(runner, registry, namespace, lambda pod: namespace.evict(pod["metadata"]["name"]))
    assert "by an eviction" in said or "EvictionByEvictionAPI" in said


async def test_a_run_whose_job_is_deleted_is_lost_and_tried_again(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    said = await _lost_once(
        runner, registry, namespace, lambda pod: namespace.delete_job(pod["metadata"]["labels"]["job-name"])
    )
    assert "deleted" in said


async def test_a_run_at_the_deadline_of_its_job_has_timed_out(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    await publish(registry, node(_WAITS_ONCE))
    run = await runner.start()
    await runner.in_state(run.id, "running", seconds=PATIENCE_SECONDS)
    pod = await namespace.pod_of(run.id)
    await namespace.patch_job(pod["metadata"]["labels"]["job-name"], {"activeDeadlineSeconds": 1})
    ended = await runner.finished(run.id, seconds=PATIENCE_SECONDS)
    assert ended.state is RunState.TIMED_OUT
    assert ended.error is not None
    assert "its deadline" in ended.error.message
    await namespace.empty()


@pytest.mark.parametrize(
    ("image", "policy", "reason"),
    [
        ("localhost/stowage/there-is-none:1", "IfNotPresent", "ErrImagePull|ImagePullBackOff"),
        ("localhost/stowage/there-is-none:1", "Never", "ErrImageNeverPull"),
        ("localhost/Not/An:Image:Name", "IfNotPresent", "InvalidImageName"),
    ],
)
async def test_an_image_that_can_not_be_had_is_named(
    other: Callable[..., Any],
    namespace: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
    policy: str,
    reason: str,
) -> None:
    monkeypatch.setattr("services.runner.kubernetes.causes.REPAIR_SECONDS", 2.0)
    error = await _error_of(await other(kubernetes_image=image, kubernetes_pull_policy=policy))
    assert error.type == "image_unavailable"
    assert re.search(reason, error.message)
    assert "STOWAGE_RUNNER_KUBERNETES_IMAGE" in error.message
    await namespace.empty()


async def test_a_pod_that_fits_no_node_is_unschedulable_in_the_words_of_the_scheduler(
    other: Callable[..., Any], namespace: Namespace
) -> None:
    classes = {"gpu": {"nodeSelector": {"stowage.dev/no-node-has": "this"}}}
    error = await _error_of(await other(kubernetes_classes=classes, kubernetes_start_seconds=15), nodeClass="gpu")
    assert error.type == "unschedulable"
    assert "nodes are available" in error.message
    await namespace.empty()


async def test_a_class_that_there_is_not_is_refused_without_a_job(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    error = await _error_of((runner, registry), nodeClass="huge")
    assert error.type == "class_unavailable"
    assert "“huge”" in error.message
    assert await namespace.jobs() == []


async def test_a_job_that_the_cluster_does_not_take_fails_with_its_words(
    other: Callable[..., Any], namespace: Namespace
) -> None:
    classes = {"odd": {"tolerations": [{"key": "a", "operator": "Sometimes"}]}}
    error = await _error_of(await other(kubernetes_classes=classes), nodeClass="odd")
    assert error.type == "job_refused"
    assert "toleration" in error.message.lower()
    assert await namespace.jobs() == []


async def test_a_runner_without_rights_says_so(other: Callable[..., Any]) -> None:
    error = await _error_of(await other(kubernetes_namespace="stowage-there-is-no-such-namespace"))
    assert error.type == "job_refused"
    assert "stowage-there-is-no-such-namespace" in error.message


async def test_a_quota_without_room_is_named(other: Callable[..., Any], namespace: Namespace) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    await namespace.create("/api/v1/namespaces/{ns}/resourcequotas", quota)
    try:
        started = await other(kubernetes_start_seconds=8)
        await _until_quota_holds(namespace)
        error = await _error_of(started)
    finally:
        await namespace.request("DELETE", "/api/v1/namespaces/{ns}/resourcequotas/none")
    assert error.type == "not_started"
    assert "exceeded quota" in error.message
    assert "STOWAGE_RUNNER_CONCURRENCY" in error.message


async def test_a_run_waits_for_room_in_a_quota(other: Callable[..., Any], namespace: Namespace) -> None:
    quota = {"metadata": {"name": "one"}, "spec": {"hard": {"count/jobs.batch": "1"}}}
    await namespace.create("/api/v1/namespaces/{ns}/resourcequotas", quota)
    try:
        runner, registry = await other(concurrency=2)
        await _until_quota_holds(namespace)
        await publish(registry, node(_RETURNS))
        runs = [await runner.start() for _ in range(2)]
        ended = [await runner.finished(run.id, seconds=PATIENCE_SECONDS) for run in runs]
    finally:
        await namespace.request("DELETE", "/api/v1/namespaces/{ns}/resourcequotas/one")
    assert [(run.state, run.attempts) for run in ended] == [(RunState.SUCCEEDED, 1)] * 2
    await namespace.empty()


async def test_a_pod_that_no_quota_lets_in_is_not_started(other: Callable[..., Any], namespace: Namespace) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await namespace.create("/api/v1/namespaces/{ns}/resourcequotas", quota)
    try:
        started = await other(kubernetes_start_seconds=4)
        await _until_quota_holds(namespace)
        error = await _error_of(started)
    finally:
        await namespace.request("DELETE", "/api/v1/namespaces/{ns}/resourcequotas/none")
    assert error.type == "not_started"
    assert "got no pod" in error.message
    await namespace.empty()


async def test_an_agent_that_does_not_reach_the_runner_says_so(
    other: Callable[..., Any], namespace: Namespace, where: Where
) -> None:
    error = await _error_of(await other(advertised_url=f"http://{where.address}:1"))
    assert error.type == "not_started"
    assert f"http://{where.address}:1/internal/attempt can't be reached" in error.message
    assert "STOWAGE_RUNNER_ADVERTISED_URL" in error.message
    await namespace.empty()


async def test_a_job_that_takes_too_much_memory_at_once_has_exceeded_it(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    code = """
    export function handler() {
        const taken = [];
        for (;;) taken.push(Buffer.alloc(64 * 1024 * 1024, 1));
    }
    """
    await publish(registry, node(code))
    run = await runner.run(seconds=PATIENCE_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "memory_exceeded"
    await namespace.empty()


async def test_a_container_that_the_kernel_ends_for_its_memory_has_exceeded_it(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    # Buffers of pipes are charged to the container and to none of its processes: the largest of them is the agent.
    code = """
    import os, time
    def handler(context):
        for _ in range(200):
            if os.fork() == 0:
                for _ in range(2000):
                    _, writing = os.pipe()
                    os.set_blocking(writing, False)
                    try:
                        os.write(writing, bytes(65536))
                    except OSError:
                        pass
                time.sleep(600)
        time.sleep(600)
    """
    await publish(registry, python(code))
    run = await runner.run(seconds=PATIENCE_SECONDS)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert run.error.type == "memory_exceeded", run.error
    assert "OOMKilled" in run.error.message
    await namespace.empty()


async def _until_quota_holds(namespace: Namespace) -> None:
    """Wait until the cluster has counted what there is: before that a quota refuses in other words."""
    while True:
        quotas = await namespace.request("GET", "/api/v1/namespaces/{ns}/resourcequotas")
        if all(quota.get("status", {}).get("hard") for quota in quotas["items"]):
            return
