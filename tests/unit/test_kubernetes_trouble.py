"""What a runner does while a cluster, or what stands between, has nothing but errors for it."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration

from services.runner.kubernetes.causes import Seen
from services.runner.kubernetes.cluster import Cluster
from services.runner.kubernetes.pauses import FIRST_PAUSE_SECONDS, Pauses
from services.runner.kubernetes.place import JobAgent, KubernetesPlace
from services.runner.kubernetes.shapes import Pod
from services.runner.kubernetes.watched import Watched
from tests.unit.placements import LIMITS, job_settings, placement_of

_SHORTEST = 0.75 * FIRST_PAUSE_SECONDS
_OVER_QUOTA = "jobs.batch is forbidden: exceeded quota: runs, used: count/jobs.batch=20, limited: count/jobs.batch=20"


def _error(status: int, reason: str, message: str = "no") -> web.Response:
    return web.json_response({"kind": "Status", "code": status, "reason": reason, "message": message}, status=status)


class _Gate:
    """Stands before an API server, and lets nothing through."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[float] = []
        self.answers: deque[web.Response] = deque()
        self.listed: list[float] = []
        self.lists: deque[web.Response] = deque()

    async def refuse(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            if request.query.get("watch"):
                self.asked.append(asyncio.get_running_loop().time())
                return self.answers.popleft() if self.answers else web.Response()
            self.listed.append(asyncio.get_running_loop().time())
            empty = {"items": [], "metadata": {"resourceVersion": "1"}}
            return self.lists.popleft() if self.lists else web.json_response(empty)
        self.asked.append(asyncio.get_running_loop().time())
        return self.answers.popleft()

    async def until_asked(self, times: int) -> Sequence[float]:
        """When it was asked, once it was so many times."""
        async with asyncio.timeout(60):
            while len(self.asked) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.asked[:times]


@pytest.fixture
async def gate() -> AsyncIterator[_Gate]:
    made = _Gate()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.refuse)
    server = web.AppRunner(application, shutdown_timeout=0.1)
    await server.setup()
    try:
        await web.TCPSite(server, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{server.addresses[0][1]}"
        yield made
    finally:
        await server.cleanup()


@contextlib.asynccontextmanager
async def _cluster(gate: _Gate) -> AsyncIterator[Cluster]:
    async with ApiClient(Configuration(host=gate.url)) as api:
        yield Cluster(api, "stowage-runs")


@pytest.mark.parametrize("forgets", [False, True], ids=["ends-at-once", "has-forgotten"])
async def test_a_watch_that_never_lives_is_asked_for_less_and_less_often(gate: _Gate, forgets: bool) -> None:
    if forgets:
        gate.answers.extend(_error(410, "Expired") for _ in range(20))
    async with _cluster(gate) as cluster:
        pods = Watched(cluster, "Pod", Pod.model_validate, "", lambda _pod, _gone: None)
        async with pods.watching():
            first, second, third, fourth = await gate.until_asked(4)
    assert second - first >= _SHORTEST
    assert third - second >= 2 * _SHORTEST
    assert fourth - third >= 4 * _SHORTEST


@pytest.mark.parametrize("request_", ["list", "watch"])
async def test_an_api_server_that_says_when_is_not_asked_before(gate: _Gate, request_: str) -> None:
    busy = _error(429, "TooManyRequests")
    busy.headers["Retry-After"] = "1"
    (gate.lists if request_ == "list" else gate.answers).append(busy)
    async with _cluster(gate) as cluster:
        pods = Watched(cluster, "Pod", Pod.model_validate, "", lambda _pod, _gone: None)
        async with pods.watching():
            await gate.until_asked(2)
    first, second = (gate.listed if request_ == "list" else gate.asked)[:2]
    assert second - first >= 1


def test_pauses_grow_to_the_longest_and_begin_anew() -> None:
    pauses = Pauses(2.0)
    assert all(0.75 * seconds <= pauses.next() <= 1.25 * seconds for seconds in (0.25, 0.5, 1.0, 2.0, 2.0))
    assert pauses.next(at_least=10.0) == 10.0
    pauses.reset()
    assert pauses.next() <= 1.25 * FIRST_PAUSE_SECONDS


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (409, "Conflict", "no"),
        (401, "Unauthorized", "no"),
        (403, "Forbidden", "no"),
        (403, "Forbidden", _OVER_QUOTA),
        (502, "BadGateway", "no"),
    ],
)
async def test_what_may_pass_does_not_end_a_run(gate: _Gate, status: int, reason: str, message: str) -> None:
    gate.answers.extend(_error(status, reason, message) for _ in range(2))
    gate.answers.append(_error(422, "Invalid", "a wrong toleration"))
    async with _cluster(gate) as cluster, KubernetesPlace(cluster, job_settings()).placed(placement_of()) as agent:
        async with asyncio.timeout(60):
            error = (await agent.over()).error
    assert len(gate.asked) == 3
    assert error is not None
    assert error.type == "job_refused"
    assert "a wrong toleration" in error.message


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (lambda: _error(422, "Invalid"), "job_refused"),
        (lambda: web.json_response(["no", "Status"], status=400), "job_refused"),
        (lambda: web.json_response({"kind": "something else"}, status=201), "not_started"),
    ],
)
async def test_what_will_not_pass_ends_it_at_once(gate: _Gate, refusal: Any, kind: str) -> None:
    gate.answers.append(refusal())
    async with _cluster(gate) as cluster, KubernetesPlace(cluster, job_settings()).placed(placement_of()) as agent:
        async with asyncio.timeout(60):
            error = (await agent.over()).error
    assert len(gate.asked) == 1
    assert error is not None
    assert error.type == kind


async def test_why_the_job_is_not_there_yet_is_told(gate: _Gate) -> None:
    gate.answers.extend(_error(409, "Conflict", "the quota has been modified") for _ in range(20))
    async with _cluster(gate) as cluster, KubernetesPlace(cluster, job_settings()).placed(placement_of()) as agent:
        await gate.until_asked(2)
        error = agent.not_begun(1).error
    assert error is not None
    assert error.type == "not_started"
    assert "the quota has been modified (409)" in error.message


async def test_a_namespace_without_room_is_named_and_what_to_do(gate: _Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runner.kubernetes.place._UNSURE_SECONDS", 0.0)
    gate.answers.extend(_error(403, "Forbidden", _OVER_QUOTA) for _ in range(20))
    async with _cluster(gate) as cluster, KubernetesPlace(cluster, job_settings()).placed(placement_of()) as agent:
        await gate.until_asked(2)
        error = agent.not_begun(300).error
    assert error is not None
    assert error.type == "not_started"
    assert f"{_OVER_QUOTA} (403)" in error.message
    assert "The namespace has no room for it. Let STOWAGE_RUNNER_CONCURRENCY times" in error.message


def _waiting(reason: str) -> Pod:
    state = {"name": "run", "state": {"waiting": {"reason": reason, "message": "too many pulls"}}}
    return Pod.model_validate(
        {"metadata": {"name": "pod-1", "uid": "1"}, "status": {"phase": "Pending", "containerStatuses": [state]}}
    )


async def test_what_the_kubelet_repairs_ends_nothing(gate: _Gate) -> None:
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    async with _cluster(gate) as cluster:
        agent = JobAgent(Seen("job", "stowage-runs", LIMITS), "lease", job_settings(), cluster)
        over = asyncio.create_task(agent.over())
        for reason in ("ErrImagePull", "ImagePullBackOff", "CreateContainerError", "ContainerCreating"):
            agent.hear_of_pod(_waiting(reason), gone=False)
            await asyncio.wait((over,), timeout=0.05)
        pod = Pod.model_validate({"metadata": {"name": "pod-1", "uid": "1"}, "status": evicted})
        agent.hear_of_pod(pod, gone=False)
        async with asyncio.timeout(60):
            error = (await over).error
    assert error is not None
    assert "low on memory" in error.message


async def test_what_lasts_is_told_though_its_words_change_to_and_fro(
    gate: _Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runner.kubernetes.causes.REPAIR_SECONDS", 0.5)
    async with _cluster(gate) as cluster:
        agent = JobAgent(Seen("job", "stowage-runs", LIMITS), "lease", job_settings(), cluster)
        over = asyncio.create_task(agent.over())
        async with asyncio.timeout(60):
            for reason in itertools.cycle(("ErrImagePull", "ImagePullBackOff")):
                agent.hear_of_pod(_waiting(reason), gone=False)
                if (await asyncio.wait((over,), timeout=0.05))[0]:
                    break
        error = (await over).error
    assert error is not None
    assert error.type == "image_unavailable"


@pytest.mark.parametrize(("status", "reason"), [(410, "Expired"), (403, "Forbidden"), (503, "ServiceUnavailable")])
async def test_what_can_not_be_swept_now_stops_nobody(gate: _Gate, status: int, reason: str) -> None:
    gate.lists.append(_error(status, reason))

    async def held(_runs: Any) -> dict[str, str | None]:
        return {}

    async with _cluster(gate) as cluster:
        await KubernetesPlace(cluster, job_settings()).sweep(held)
    assert not gate.lists


@pytest.mark.parametrize(("status", "reason"), [(410, "Expired"), (403, "Forbidden"), (503, "ServiceUnavailable")])
async def test_looking_in_vain_tells_nothing(gate: _Gate, status: int, reason: str) -> None:
    seen = Seen("job", "stowage-runs", LIMITS)
    gate.lists.append(_error(status, reason))
    async with _cluster(gate) as cluster:
        await JobAgent(seen, "lease", job_settings(), cluster).look()
    assert not gate.lists
    assert (seen.job, seen.job_gone, seen.pod, seen.pod_gone) == (None, False, None, False)
