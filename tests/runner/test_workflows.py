"""Workflows: order, parallelism, templates, failures, cancels."""

import asyncio
from typing import Any

import pytest

from libs.common.models import (
    InputSource,
    JobDefinition,
    StepDefinition,
    StepState,
    WorkflowDefinition,
    WorkflowRun,
    WorkflowRunState,
)
from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish
from tests.runner.running import RunningRunner

_STEP = """
    import fs from 'node:fs';
    export async function handler({ parameters, inputs, outputDir }) {
      if (parameters.fail) throw new Error('as asked');
      if (parameters.write) fs.writeFileSync(`${outputDir}/note.txt`, parameters.write);
      const began = Date.now();
      await new Promise((go) => setTimeout(go, parameters.ms ?? 0));
      const read = {};
      for (const [name, path] of Object.entries(inputs)) read[name] = fs.readFileSync(path, 'utf8');
      return { parameters, read, began, ended: Date.now(), minute: '2026-03-04T00:10:00Z', list: [{ n: 1 }, { n: 2 }] };
    }
"""


@pytest.fixture(autouse=True, scope="module")
async def _job(registry: RunningRegistry) -> None:
    await publish(registry, node(_STEP, slug="step"), "step")
    await registry.client.put_job("step", JobDefinition(bundle="step@latest", parameters={"ms": 0}))


def _step(
    name: str, *depends_on: str, inputs: dict[str, InputSource] | None = None, **parameters: Any
) -> StepDefinition:
    return StepDefinition(
        name=name, job="step", depends_on=list(depends_on), parameters=parameters, inputs=inputs or {}
    )


async def _run(
    registry: RunningRegistry, runner: RunningRunner, *steps: StepDefinition, **parameters: Any
) -> WorkflowRun:
    await registry.client.put_workflow("flow", WorkflowDefinition(steps=list(steps), parameters={"given": None}))
    started = await runner.client.start_workflow("flow", parameters)
    return await runner.workflow_finished(started.id)


def _states(run: WorkflowRun) -> dict[str, str]:
    return {step.name: step.state.value for step in run.steps}


async def test_steps_run_in_order_with_parameters_and_inputs_of_what_came_before(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    run = await _run(
        registry,
        runner,
        _step("first", write="{{ parameters.given.text }}", ms="{{ parameters.given.ms }}"),
        _step(
            "second",
            "first",
            minute="{{ steps.first.result.minute }}",
            whole="{{ parameters.given }}",
            text="at {{steps.first.result.minute}}, {{ steps.first.result.list.1.n }} of {{ parameters.given.list }}",
            plain="{ not a template }",
            inputs={"note": InputSource(step="first", path="note.txt")},
        ),
        given={"text": "hello", "ms": 1, "list": [1, None]},
    )
    assert run.state is WorkflowRunState.SUCCEEDED, run.steps
    first, second = run.steps
    assert first.result["parameters"] == {"ms": 1, "write": "hello"}
    assert second.result["parameters"] == {
        "ms": 0,
        "minute": "2026-03-04T00:10:00Z",
        "whole": {"text": "hello", "ms": 1, "list": [1, None]},
        "text": "at 2026-03-04T00:10:00Z, 2 of [1,null]",
        "plain": "{ not a template }",
    }
    assert second.result["read"] == {"note": "hello"}
    assert second.result["began"] >= first.result["ended"]
    details = await runner.client.run(second.run_id or "")
    assert (details.workflow_run_id, details.step, details.job) == (run.id, "second", "step")
    assert details.inputs["note"].run == first.run_id
    actions = [event["action"] for event in await runner.audit(f"workflow-run/{run.id}")]
    assert actions == ["workflow_run.accepted", "workflow_run.finished"]
    page = (await runner.request("GET", f"/runs?workflowRun={run.id}")).json
    assert {item["step"] for item in page["items"]} == {"first", "second"}


async def test_independent_steps_run_side_by_side(registry: RunningRegistry, runner: RunningRunner) -> None:
    run = await _run(registry, runner, _step("a", ms=1000), _step("b", ms=1000), _step("c", "a", "b"))
    a, b, c = (step.result for step in run.steps)
    assert max(a["began"], b["began"]) < min(a["ended"], b["ended"])
    assert c["began"] >= max(a["ended"], b["ended"])


async def test_a_failed_step_stops_what_depends_on_it_and_nothing_else(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    run = await _run(
        registry,
        runner,
        _step("bad", fail=True),
        _step("after", "bad"),
        _step("later", "after"),
        _step("other", ms=300),
        _step("behind_other", "other"),
        _step("both", "other", "bad"),
    )
    assert run.state is WorkflowRunState.FAILED
    assert _states(run) == {
        "bad": "failed",
        "after": "skipped",
        "later": "skipped",
        "other": "succeeded",
        "behind_other": "succeeded",
        "both": "skipped",
    }
    error = run.steps[0].error
    assert error is not None
    assert (error.type, error.message) == ("Error", "as asked")
    assert run.steps[1].run_id is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"x": "{{ parameters.nothing }}"}, "parameters.nothing: there is no “nothing” in parameters; it has given."),
        ({"x": "{{ steps.first.result.odd }}"}, "there is no “odd” in steps.first.result; it has began, ended, list"),
        ({"x": "{{ steps.first.result.list.7 }}"}, "there is no “7” in steps.first.result.list; it is a list of 2."),
        ({"x": "{{ steps.first.result.minute.y }}"}, 'it is "2026-03-04T00:10:00Z".'),
        ({"x": "{{ first result }}"}, "is not a reference: write {{ parameters.name }}"),
    ],
)
async def test_a_reference_that_means_nothing_fails_its_step_with_a_sentence(
    registry: RunningRegistry, runner: RunningRunner, parameters: dict[str, Any], message: str
) -> None:
    run = await _run(registry, runner, _step("first"), _step("second", "first", **parameters), _step("third", "second"))
    assert _states(run) == {"first": "succeeded", "second": "failed", "third": "skipped"}
    error = run.steps[1].error
    assert error is not None
    assert (error.type, message in error.message) == ("template", True), error.message
    assert run.state is WorkflowRunState.FAILED


async def test_an_input_may_name_a_run_by_a_parameter_and_be_left_out(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    source = await runner.run("step@latest", parameters={"write": "earlier"})
    for optional in (True, False):
        reader = _step(
            "reader",
            inputs={"note": InputSource(run="{{ parameters.given }}", path="note.txt", optional=optional)},
        )
        run = await _run(registry, runner, reader, given=source.id)
        assert run.steps[0].result["read"] == {"note": "earlier"}
        run = await _run(registry, runner, reader)
        if optional:
            assert run.steps[0].result["read"] == {}
        else:
            assert run.steps[0].error is not None
            assert run.steps[0].error.message == (
                "input note names no run: {{ parameters.given }} is null. Give the id of a run."
            )


async def test_every_step_is_pinned_when_the_workflow_run_is_accepted(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, node("export const handler = () => 'old'", slug="moving"), "moving")
    await registry.client.put_job("moving", JobDefinition(bundle="moving@latest"))
    second = StepDefinition(name="second", job="moving", depends_on=["first"])
    await registry.client.put_workflow("pinned", WorkflowDefinition(steps=[_step("first", ms=1000), second]))
    started = await runner.client.start_workflow("pinned", {})
    await publish(registry, node("export const handler = () => 'new'", slug="moving"), "moving")
    await registry.client.put_job("moving", JobDefinition(bundle="step@latest"))
    await registry.client.put_workflow("pinned", WorkflowDefinition(steps=[_step("only")]))
    run = await runner.workflow_finished(started.id)
    assert [step.name for step in run.steps] == ["first", "second"]
    assert run.steps[1].result == "old"


async def test_cancelling_a_workflow_run_ends_what_runs_and_starts_no_more(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    steps = [_step("a", ms=60000), _step("b", ms=60000), _step("c", ms=60000), _step("d", "a")]
    await registry.client.put_workflow("endless", WorkflowDefinition(steps=steps))
    started = await runner.client.start_workflow("endless", {})
    assert _states(started) == {"a": "queued", "b": "queued", "c": "queued", "d": "waiting"}
    for step in started.steps[:2]:
        await runner.in_state(step.run_id or "", "running")
    running = await runner.client.workflow_run(started.id)
    assert _states(running) == {"a": "running", "b": "running", "c": "queued", "d": "waiting"}
    answer = await runner.request("POST", f"/workflow-runs/{started.id}/cancel")
    assert answer.status == 202
    assert [step["state"] for step in answer.json["steps"]] == ["running", "running", "cancelled", "cancelled"]
    run = await runner.workflow_finished(started.id)
    assert run.state is WorkflowRunState.CANCELLED
    assert set(_states(run).values()) == {"cancelled"}
    again = await runner.request("POST", f"/workflow-runs/{started.id}/cancel")
    assert (again.status, again.json["state"]) == (202, "cancelled")


async def test_a_cancelled_step_stops_what_depends_on_it(registry: RunningRegistry, runner: RunningRunner) -> None:
    await registry.client.put_workflow(
        "half", WorkflowDefinition(steps=[_step("a", ms=60000), _step("b", "a"), _step("c")])
    )
    started = await runner.client.start_workflow("half", {})
    await runner.request("POST", f"/runs/{started.steps[0].run_id}/cancel")
    run = await runner.workflow_finished(started.id)
    assert (run.state, _states(run)) == (
        WorkflowRunState.CANCELLED,
        {"a": "cancelled", "b": "skipped", "c": "succeeded"},
    )


async def test_a_finished_workflow_run_cannot_be_cancelled(registry: RunningRegistry, runner: RunningRunner) -> None:
    run = await _run(registry, runner, _step("only"))
    answer = await runner.request("POST", f"/workflow-runs/{run.id}/cancel")
    assert (answer.status, "has already ended: it is succeeded" in answer.json["detail"]) == (409, True)
    assert (await runner.request("POST", "/workflow-runs/wfr_none/cancel")).status == 404
    assert (await runner.request("GET", "/workflow-runs/wfr_none")).status == 404
    assert (await runner.request("POST", "/workflows/none/runs", json={})).status == 404


async def test_workflow_runs_are_listed(registry: RunningRegistry, runner: RunningRunner) -> None:
    await registry.client.put_workflow("listed", WorkflowDefinition(steps=[_step("only")]))
    made = [(await runner.client.start_workflow("listed", {})).id for _ in range(3)]
    for identifier in made:
        await runner.workflow_finished(identifier)
    page = (await runner.request("GET", "/workflow-runs?workflow=listed&limit=2")).json
    rest = (await runner.request("GET", f"/workflow-runs?workflow=listed&limit=2&cursor={page['next']}")).json
    assert [item["id"] for item in page["items"] + rest["items"]] == sorted(made, reverse=True)
    assert rest["next"] is None
    assert page["items"][0]["steps"][0]["name"] == "only"
    assert (await runner.request("GET", "/workflow-runs?state=running&workflow=listed")).json["items"] == []


async def test_steps_that_end_at_the_same_moment_start_what_waits_for_them_once(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    wide = [_step(f"s{number}") for number in range(6)]
    definition = WorkflowDefinition(steps=[*wide, _step("last", *(step.name for step in wide))])
    await registry.client.put_workflow("wide", definition)
    started = await asyncio.gather(*(runner.client.start_workflow("wide", {}) for _ in range(3)))
    for one in started:
        run = await runner.workflow_finished(one.id)
        assert run.state is WorkflowRunState.SUCCEEDED
        assert {step.state for step in run.steps} == {StepState.SUCCEEDED}
        page = (await runner.request("GET", f"/runs?workflowRun={run.id}")).json
        assert len(page["items"]) == 7
        actions = [event["action"] for event in await runner.audit(f"workflow-run/{run.id}")]
        assert actions.count("workflow_run.finished") == 1


async def test_cancels_that_race_with_steps_that_end_leave_no_workflow_run_hanging(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    definition = WorkflowDefinition(
        steps=[*(_step(f"s{number}", ms=20 * number) for number in range(4)), _step("last", "s0", "s1")]
    )
    await registry.client.put_workflow("raced", definition)
    started = await asyncio.gather(*(runner.client.start_workflow("raced", {}) for _ in range(6)))

    async def cancel(number: int, run: WorkflowRun) -> int:
        await asyncio.sleep(0.25 * number)
        steps = [runner.request("POST", f"/runs/{step.run_id}/cancel") for step in run.steps if step.run_id]
        answers = await asyncio.gather(runner.request("POST", f"/workflow-runs/{run.id}/cancel"), *steps)
        return max(answer.status for answer in answers)

    statuses = await asyncio.gather(*(cancel(number, run) for number, run in enumerate(started)))
    assert set(statuses) <= {202, 409}
    for one in started:
        run = await runner.workflow_finished(one.id)
        assert not {step.state for step in run.steps} & {StepState.WAITING, StepState.QUEUED, StepState.RUNNING}
        for step in run.steps:
            if step.run_id is not None:
                assert (await runner.client.run(step.run_id)).state.final
        actions = [event["action"] for event in await runner.audit(f"workflow-run/{run.id}")]
        assert actions.count("workflow_run.finished") == 1


async def test_a_workflow_that_is_asked_for_twice_with_one_key_runs_once(
    registry: RunningRegistry, runner: RunningRunner
) -> None:
    await publish(registry, node("export const handler = () => 1", slug="twice"), "twice")
    await registry.request("PUT", "/jobs/twice", json={"bundle": "twice@latest"})
    await registry.request("PUT", "/workflows/twice", json={"steps": [{"name": "one", "job": "twice"}]})
    headers = {"Idempotency-Key": "twice"}
    first, again = [await runner.request("POST", "/workflows/twice/runs", json={}, headers=headers) for _ in range(2)]
    assert (first.status, again.status, again.body) == (202, 202, first.body)
    assert again.headers["Location"] == first.headers["Location"]
    found = await runner.request("GET", "/workflow-runs?workflow=twice")
    assert [item["id"] for item in found.json["items"]] == [first.json["id"]]
    await runner.workflow_finished(first.json["id"])
