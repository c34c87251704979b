"""The local overlay on a real cluster, with both executors: it does its work, and bears what happens to pods."""

from collections import Counter
from typing import Any

import pytest

from tests.kubernetes.cluster.installation import SERVICES, Installation, until

pytestmark = pytest.mark.timeout(900)

_PER_SECOND = {"process": 1.0, "kubernetes": 0.3}
_RUNS_BEFORE = 5
"""So many runs were accepted before something happens to the pods."""


def test_everything_is_ready(installation: Installation, executor: str) -> None:
    for service in SERVICES:
        pods = installation.pods(service)
        assert pods
        assert all(pod.ready for pod in pods), executor


def test_the_observatory_is_imported_and_its_workflows_run(installation: Installation, executor: str) -> None:
    seen = installation.script("observatory")
    assert seen["import"]["state"] == "succeeded", seen["import"]
    assert seen["workflows"] == {
        "observatory-hourly-ingest": "succeeded",
        "observatory-daily-publication": "succeeded",
    }, seen["runs"]
    assert "report.html" in seen["outputs"]
    for run in seen["runs"]:
        assert run["sandbox"]["level"] in ("landlock", "bubblewrap"), run
        assert "seccomp" in run["sandbox"]["layers"]
    if executor == "kubernetes":
        until(lambda: not installation.of_runs("jobs") and not installation.of_runs("pods"))


def test_a_rolling_restart_loses_no_request_and_no_run(installation: Installation, executor: str) -> None:
    before = {service: {pod.name for pod in installation.pods(service)} for service in ("registry", "runner")}
    with installation.load(_PER_SECOND[executor], begin_with=_RUNS_BEFORE) as seen:
        installation.run("rollout", "restart", "deployment/registry", "deployment/runner")
        for service, names in before.items():
            installation.wait_rolled_out(service)
            assert not names & {pod.name for pod in installation.pods(service)}
    _check_runs(seen)
    assert seen["failures"] == []
    attempts = Counter(state for run in seen["runs"] for state in run["attempts"])
    causes = [cause for run in seen["runs"] for cause in run["causes"]]
    assert attempts.keys() <= {"succeeded", "handed_back"}, causes
    if executor == "process":  # they take two seconds; a pod may take longer than a runner waits for it
        assert attempts.keys() == {"succeeded"}, attempts


def test_an_import_survives_its_builder(installation: Installation, executor: str) -> None:
    started = installation.script("imports")
    (before,) = installation.pods("builder")
    installation.run("delete", "pod", before.name)
    installation.wait_rolled_out("builder")
    assert before.name not in {pod.name for pod in installation.pods("builder")}, executor
    seen = installation.script("imports", id=started["id"])
    assert seen["state"] == "succeeded", seen
    assert {build["state"] for build in seen["builds"]} == {"succeeded"}
    assert seen["events"]["import.handed_back"] == 1
    assert seen["events"]["build.finished"] == len(seen["builds"])


def test_eviction_of_all_runners_loses_no_run(installation: Installation, executor: str) -> None:
    with installation.load(_PER_SECOND[executor], begin_with=_RUNS_BEFORE) as seen:
        for pod in installation.pods("runner"):
            installation.evict(pod.name)
            installation.wait_rolled_out("runner")
            assert pod.name not in {each.name for each in installation.pods("runner")}
    _check_runs(seen)
    assert seen["failures"] == [], executor


def test_a_killed_runner_loses_no_run(installation: Installation, executor: str) -> None:
    with installation.load(_PER_SECOND[executor], begin_with=_RUNS_BEFORE) as seen:
        victim = installation.pods("runner")[0].name
        installation.run("delete", "pod", victim, "--grace-period=0", "--force")
        installation.wait_rolled_out("runner")
    _check_runs(seen)
    attempts = Counter(state for run in seen["runs"] for state in run["attempts"])
    assert attempts["succeeded"] == len(seen["runs"]), executor


def test_nothing_is_left_of_runs(installation: Installation, executor: str) -> None:
    if executor == "process":
        assert "stowage-runs" not in installation.namespaces()
    else:
        until(lambda: not installation.of_runs("jobs") and not installation.of_runs("pods"))
    assert [pod for service in SERVICES for pod in installation.pods(service) if pod.restarts] == []


def _check_runs(seen: dict[str, Any]) -> None:
    """Each run that was accepted is there once, succeeded once, and is recorded as ended once."""
    assert len(seen["runs"]) > _RUNS_BEFORE
    assert seen["afterwards"] == []
    for run in seen["runs"]:
        assert run["again"] == run["id"]
        assert (run["state"], run["attempts"].count("succeeded"), run["ends"]) == ("succeeded", 1, 1), run
        assert run["attempts"][-1] == "succeeded", run
        assert run["result"] == len(run["attempts"]), run
        assert run["outputs"] == ["made.txt"], run
    assert len({run["id"] for run in seen["runs"]}) == len(seen["runs"])
