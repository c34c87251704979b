"""Jobs are made once, bounded in number, and gone when nobody needs them, whatever happens to runner and API server."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web

from libs.common.models import Artifact, Limits, RunState
from services.runner.holder import Order
from services.runner.kubernetes.causes import Seen
from services.runner.kubernetes.cluster import Cluster, Kind, WatchExpired
from services.runner.kubernetes.place import JobAgent, open_cluster
from services.runner.kubernetes.shapes import Pod
from services.runner.kubernetes.watched import Watched
from services.runner.remote.place import Contents, Placement
from services.runner.settings import RunnerSettings
from tests.backend import Backend, fresh_backend
from tests.chaos.proxy import StallingProxy
from tests.kubernetes.executor.cluster import (
    PATIENCE_SECONDS,
    Namespace,
    Where,
    api_server_of,
    kubeconfig_for,
    kubeconfig_through,
)
from tests.registry.running import RunningRegistry, running_registry
from tests.runner.bundles import node, publish
from tests.runner.running import RunningRunner, runner_process, running_runner
from tests.servers import Servers
from tests.unit.placements import job_settings

pytestmark = pytest.mark.timeout(3 * PATIENCE_SECONDS)

_WAITS_ONCE = """
export async function handler(context) {
    context.logger("attempt " + context.run.attempt);
    if (context.run.attempt === 1) await new Promise((resolve) => setTimeout(resolve, 600000));
    return context.run.attempt;
}
"""
_TAKES_A_WHILE = "export const handler = () => new Promise((resolve) => setTimeout(() => resolve('done'), 4000));"


@pytest.fixture
async def own_backend(servers: Servers) -> AsyncIterator[Backend]:
    """A database of the test's own."""
    async with fresh_backend(servers) as made:
        yield made


@pytest.fixture
async def own_registry(own_backend: Backend) -> AsyncIterator[RunningRegistry]:
    """A registry of the test's own."""
    async with running_registry(own_backend) as running:
        yield running


def _placement(run_id: str, lease: str) -> Placement:
    artifact = Artifact.model_validate(
        {
            "digest": "sha256:" + "0" * 64,
            "contentDigest": "sha256:" + "0" * 64,
            "objectKey": "artifacts/none",
            "size": 1,
            "unpackedSize": 1,
            "fileCount": 1,
            "compression": "zstd",
            "platforms": [],
            "native": [],
            "manifest": {},
            "createdAt": "2026-01-01T00:00:00Z",
        }
    )
    order = Order(run_id, 1, "hello", "1.0.0", artifact.digest, artifact, Limits(), {})
    limits = RunnerSettings.model_construct().job_limits()
    return Placement(order, lease, limits, 60.0, Contents(0, 0), network=False, token="none")


@contextlib.asynccontextmanager
async def _place(where: Where, namespace: Namespace, **more: Any) -> AsyncIterator[Any]:
    settings = RunnerSettings.model_construct(
        kubernetes_config=where.kubeconfig,
        kubernetes_namespace=namespace.name,
        kubernetes_image=where.image,
        advertised_url="http://127.0.0.1:1",
        **more,
    )
    async with open_cluster(settings) as place:
        yield place


async def _jobs(namespace: Namespace, count: int) -> list[Any]:
    """The Jobs that are there, once there are so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(found := await namespace.jobs()) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found


async def test_a_job_that_is_there_already_is_taken_for_the_answer_that_was_lost(
    where: Where, namespace: Namespace
) -> None:
    placement = _placement("run_twice", str(uuid4()))
    async with _place(where, namespace) as place, _place(where, namespace) as again, place.placed(placement):
        (made,) = await _jobs(namespace, 1)
        async with again.placed(placement) as agent:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while agent.seen.job is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert agent.seen.job.metadata.uid == made["metadata"]["uid"]
    await namespace.empty()


async def test_what_no_watch_has_told_of_is_found_by_looking(where: Where, namespace: Namespace) -> None:
    async with _place(where, namespace) as place, place.placed(_placement("run_unwatched", "mine")) as made:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while made.seen.pod is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        seen = Seen(made.seen.name, namespace.name, made.seen.limits)
        async with Cluster.open(where.kubeconfig, namespace.name) as cluster:
            agent = JobAgent(seen, "mine", job_settings(namespace=namespace.name), cluster)
            await agent.look()
        assert seen.job is not None
        assert seen.pod is not None
        assert seen.pod.metadata.name == made.seen.pod.metadata.name
    await namespace.empty()


async def test_a_job_of_another_lease_with_the_name_makes_room(where: Where, namespace: Namespace) -> None:
    async with (
        _place(where, namespace) as place,
        _place(where, namespace) as another,
        another.placed(_placement("run_again", "another")),
    ):
        (old,) = await _jobs(namespace, 1)
        async with place.placed(_placement("run_again", "mine")) as agent, asyncio.timeout(PATIENCE_SECONDS):
            while agent.seen.job is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert agent.seen.job.metadata.uid != old["metadata"]["uid"]
    await namespace.empty()


async def test_jobs_of_attempts_that_are_over_are_swept_and_no_others(where: Where, namespace: Namespace) -> None:
    async with _place(where, namespace) as place, contextlib.AsyncExitStack() as stack:
        for name in ("held", "over", "taken-over", "unknown"):
            await stack.enter_async_context(place.placed(_placement(name, f"lease-{name}")))
        await _jobs(namespace, 4)

        async def held(_runs: Any) -> dict[str, str | None]:
            return {"held": "lease-held", "over": None, "taken-over": "another"}

        await place.sweep(held)
        left = await _jobs(namespace, 2)
        assert {job["metadata"]["labels"]["stowage.dev/run"] for job in left} == {"held", "unknown"}
    await namespace.empty()


async def test_no_more_jobs_are_made_than_may_go_at_a_time(
    runner: RunningRunner, registry: RunningRegistry, namespace: Namespace
) -> None:
    await publish(registry, node(_TAKES_A_WHILE))
    runs = [await runner.start() for _ in range(5)]
    most = 0
    while not all([(await runner.client.run(run.id)).state.final for run in runs]):
        leased = [job for job in await namespace.jobs() if "deletionTimestamp" not in job["metadata"]]
        most = max(most, len({job["metadata"]["name"] for job in leased if not job["status"].get("succeeded")}))
        await asyncio.sleep(0.05)
    assert {(await runner.client.run(run.id)).state for run in runs} == {RunState.SUCCEEDED}
    assert most == 2
    await namespace.empty()


async def test_a_runner_that_stops_hands_its_runs_back_and_leaves_no_job(
    where: Where,
    own_backend: Backend,
    own_registry: RunningRegistry,
    namespace: Namespace,
    on_cluster: dict[str, Any],
    tmp_path: Path,
) -> None:
    await publish(own_registry, node(_WAITS_ONCE))
    async with running_runner(
        own_backend, own_registry, tmp_path / "s", address=where.address, drain_seconds=0.2, **on_cluster
    ) as runner:
        run = await runner.start()
        await runner.in_state(run.id, "running", seconds=PATIENCE_SECONDS)
    (row,) = await own_backend.fetch("SELECT state::text AS state, attempts FROM runner.runs")
    assert (row["state"], row["attempts"]) == ("queued", 1)
    await namespace.empty()


async def test_a_runner_that_is_killed_leaves_a_run_that_another_finishes_and_no_job(
    where: Where,
    own_backend: Backend,
    own_registry: RunningRegistry,
    namespace: Namespace,
    on_cluster: dict[str, Any],
    tmp_path: Path,
) -> None:
    await publish(own_registry, node(_WAITS_ONCE))
    settings = {**on_cluster, "host": where.address, "lease_seconds": 3}
    async with runner_process(own_backend, own_registry, tmp_path / "first", **settings) as first:
        run = await first.start()
        await first.in_state(run.id, "running", seconds=PATIENCE_SECONDS)
        (job,) = await namespace.jobs()
        await first.kill()
    async with runner_process(own_backend, own_registry, tmp_path / "second", **settings) as second:
        ended = await second.finished(run.id, seconds=PATIENCE_SECONDS)
        assert (ended.state, ended.result) == (RunState.SUCCEEDED, 2)
    async with running_runner(  # whatever the second has not swept is by whoever comes next
        own_backend, own_registry, tmp_path / "third", address=where.address, **on_cluster
    ):
        assert job["metadata"]["name"] not in [
            found["metadata"]["name"]
            for found in await namespace.jobs()
            if "deletionTimestamp" not in found["metadata"]
        ]
    await namespace.empty()


async def test_a_run_outlives_an_api_server_that_is_away(
    where: Where,
    own_backend: Backend,
    own_registry: RunningRegistry,
    namespace: Namespace,
    on_cluster: dict[str, Any],
    tmp_path: Path,
) -> None:
    await publish(own_registry, node(_TAKES_A_WHILE))
    async with StallingProxy(await api_server_of(where)).listening() as proxy:
        kubeconfig = await kubeconfig_through(where, proxy.url.replace("http:", "https:"), tmp_path / "kubeconfig")
        settings = {**on_cluster, "kubernetes_config": kubeconfig, "kubernetes_start_seconds": 60}
        async with running_runner(
            own_backend, own_registry, tmp_path / "s", address=where.address, **settings
        ) as runner:
            before = await runner.start()
            await runner.in_state(before.id, "running", seconds=PATIENCE_SECONDS)
            with proxy.refusing():
                during = await runner.start()
                assert (
                    await runner.finished(before.id, seconds=PATIENCE_SECONDS)
                ).state is RunState.SUCCEEDED  # its socket leads elsewhere
                while proxy.refused < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await runner.finished(during.id, seconds=PATIENCE_SECONDS)).state is RunState.SUCCEEDED
    await namespace.empty()


async def test_what_changed_while_a_watch_had_expired_is_told(where: Where, namespace: Namespace) -> None:
    told: list[tuple[str, bool]] = []

    class Forgetful(Cluster):
        """Begins each watch but the last from a version that the server has long forgotten."""

        expired = 0

        async def list(self, kind: Kind, selector: str) -> tuple[list[dict[str, Any]], str]:
            items, version = await super().list(kind, selector)
            self.expired += 1
            return items, "1" if self.expired <= 2 else version

    async with Forgetful.open(where.kubeconfig, namespace.name) as cluster:
        assert isinstance(cluster, Forgetful)
        with pytest.raises(WatchExpired):
            async for _ in cluster.watch("Pod", "", "1"):
                pass
        pods = Watched(cluster, "Pod", Pod.model_validate, "", lambda pod, gone: told.append((pod.metadata.name, gone)))
        async with pods.watching(), asyncio.timeout(PATIENCE_SECONDS):
            while cluster.expired < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            spec = {"containers": [{"name": "run", "image": where.image}], "nodeSelector": {"none": "has-this"}}
            await namespace.create("/api/v1/namespaces/{ns}/pods", {"metadata": {"name": "later"}, "spec": spec})
            while ("later", False) not in told:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await namespace.delete_pod("later")
            while ("later", True) not in told:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_api_server_that_wants_to_be_left_alone_is(
    where: Where,
    own_backend: Backend,
    own_registry: RunningRegistry,
    namespace: Namespace,
    on_cluster: dict[str, Any],
    tmp_path: Path,
) -> None:
    await publish(own_registry, node("export const handler = () => 'done';"))
    async with _busy(where, refusals=2) as busy:
        kubeconfig = await kubeconfig_through(where, busy.url, tmp_path / "kubeconfig")
        settings = {**on_cluster, "kubernetes_config": kubeconfig}
        async with running_runner(
            own_backend, own_registry, tmp_path / "s", address=where.address, **settings
        ) as runner:
            run = await runner.run(seconds=PATIENCE_SECONDS)
        assert run.state is RunState.SUCCEEDED
        first, second, third = busy.creations[:3]
        assert second - first >= busy.retry_after_seconds
        assert third - second >= busy.retry_after_seconds
    await namespace.empty()


async def test_the_rights_that_are_documented_are_enough(
    where: Where,
    own_backend: Backend,
    own_registry: RunningRegistry,
    namespace: Namespace,
    on_cluster: dict[str, Any],
    tmp_path: Path,
) -> None:
    await publish(own_registry, node("export const handler = () => 'done';"))
    token = await namespace.token_with(
        [
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        ]
    )
    kubeconfig = await kubeconfig_for(where, token, tmp_path / "kubeconfig")
    settings = {**on_cluster, "kubernetes_config": kubeconfig}
    async with running_runner(own_backend, own_registry, tmp_path / "s", address=where.address, **settings) as runner:
        assert (await runner.run(seconds=PATIENCE_SECONDS)).state is RunState.SUCCEEDED
    await namespace.empty()  # it was allowed to delete the Job


class _Busy:
    """A way to the API server that answers the first requests for Jobs with 429, as priority and fairness does."""

    retry_after_seconds = 2

    def __init__(self, where: Where, target: str, session: aiohttp.ClientSession, refusals: int) -> None:
        self.url = ""
        self.creations: list[float] = []
        self._where = where
        self._target = target
        self._session = session
        self._refusals = refusals

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and request.path.endswith("/jobs"):
            self.creations.append(asyncio.get_running_loop().time())
            if len(self.creations) <= self._refusals:
                body = json.dumps({"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "later"})
                return web.Response(status=429, text=body, headers={"Retry-After": str(self.retry_after_seconds)})
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        async with self._session.request(
            request.method, self._target + request.path_qs, headers=headers, data=await request.read()
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response


@contextlib.asynccontextmanager
async def _busy(where: Where, *, refusals: int) -> AsyncIterator[_Busy]:
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusting), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        busy = _Busy(where, await api_server_of(where), session, refusals)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", busy.serve)
        server = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        busy.url = f"http://127.0.0.1:{server.addresses[0][1]}"
        try:
            yield busy
        finally:
            await server.cleanup()
