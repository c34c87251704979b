"""Jobs and workflows."""

import json
from pathlib import Path
from typing import Any

import pytest

from libs.common import models
from tests.registry.running import RunningRegistry

EXAMPLE = Path(__file__).parents[2] / "examples" / "environmental-observatory"


async def test_job_is_created_updated_and_left_alone(registry: RunningRegistry) -> None:
    body: dict[str, Any] = {"bundle": "hello@latest", "parameters": {"a": 1}}
    created = await registry.request("PUT", "/jobs/greet", json=body)
    assert (created.status, created.json["revision"]) == (201, 1)
    same = await registry.request("PUT", "/jobs/greet", json=body)
    assert (same.status, same.json) == (200, created.json)
    body["parameters"]["a"] = 2
    updated = await registry.request("PUT", "/jobs/greet", json=body)
    assert (updated.status, updated.json["revision"]) == (200, 2)
    assert await registry.actions() == ["job.created", "job.updated"]
    job = await registry.client.job("greet")
    assert (job.definition.parameters, job.updated_by) == ({"a": 2}, "admin")
    assert [item["slug"] for item in (await registry.request("GET", "/jobs")).json["items"]] == ["greet"]


@pytest.mark.parametrize("reference", ["hello", "hello@", "hello@newest", "hello@sha256:12", "Hello@1.0.0", "@latest"])
async def test_job_of_a_reference_that_is_none_is_refused(registry: RunningRegistry, reference: str) -> None:
    assert (await registry.request("PUT", "/jobs/greet", json={"bundle": reference})).status == 400
    assert await registry.actions() == []


@pytest.mark.parametrize("text", ['"\\u0000"', "NaN", "1e999", "-Infinity", '"\\ud800"', "[" * 5000])
async def test_json_that_can_not_be_kept_is_the_callers_mistake(registry: RunningRegistry, text: str) -> None:
    body = f'{{"bundle": "hello@latest", "parameters": {{"a": {text}}}}}'
    assert (await registry.request("PUT", "/jobs/greet", data=body)).status == 400


def step(name: str, *depends_on: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "job": "greet", "dependsOn": depends_on, **more}


WRONG = {
    "no steps": [],
    "same name twice": [step("a"), step("a")],
    "unknown dependency": [step("a", "b")],
    "itself": [step("a", "a")],
    "circle": [step("a", "c"), step("b", "a"), step("c", "b")],
    "input of a step that is not waited for": [step("a"), step("b", inputs={"x": {"step": "a", "path": "x"}})],
    "input of an unknown step": [step("a", inputs={"x": {"step": "z", "path": "x"}})],
    "input from nowhere": [step("a", inputs={"x": {"path": "x"}})],
    "input from two places": [step("a"), step("b", "a", inputs={"x": {"step": "a", "run": "run_1", "path": "x"}})],
    "value of a step that is not waited for": [step("a"), step("b", parameters={"x": ["{{ steps.a.result.y }}"]})],
    "job that is none": [{"name": "a", "job": "../x"}],
}


@pytest.mark.parametrize("name", WRONG)
async def test_workflow_that_can_not_be_executed_is_refused(registry: RunningRegistry, name: str) -> None:
    answer = await registry.request("PUT", "/workflows/flow", json={"steps": WRONG[name]})
    assert answer.status == 400
    assert await registry.actions() == []


async def test_workflow_may_use_what_is_upstream_through_others(registry: RunningRegistry) -> None:
    steps = [
        step("c", "b", inputs={"x": {"step": "a", "path": "x/"}}, parameters={"y": "{{ steps.a.result.y }}"}),
        step("a"),
        step("b", "a"),
    ]
    assert (await registry.request("PUT", "/workflows/flow", json={"steps": steps})).status == 201
    assert (await registry.request("PUT", "/workflows/flow", json={"steps": steps})).json["revision"] == 1
    assert [item.name for item in (await registry.client.workflow("flow")).definition.steps] == ["c", "a", "b"]
    assert await registry.actions() == ["workflow.created"]


async def test_definitions_of_the_example_are_accepted(registry: RunningRegistry) -> None:
    for path in sorted((EXAMPLE / "jobs").glob("*.json")):
        document = json.loads(path.read_text())
        await registry.client.put_job(document.pop("slug"), models.JobDefinition.model_validate(document))
    for path in sorted((EXAMPLE / "workflows").glob("*.json")):
        document = json.loads(path.read_text())
        await registry.client.put_workflow(document.pop("slug"), models.WorkflowDefinition.model_validate(document))
    assert await registry.actions() == ["job.created"] * 5 + ["workflow.created"] * 2


@pytest.mark.parametrize("names", [[""], ["../x"], ["a/b"], ["..data"], [".x"], ["a b"], ["x" * 101], ["x"] * 51, [1]])
async def test_names_of_secrets_that_can_be_none_are_refused(registry: RunningRegistry, names: list[Any]) -> None:
    body = {"bundle": "hello@latest", "secrets": names}
    assert (await registry.request("PUT", "/jobs/greet", json=body)).status == 400
    body["secrets"] = ["api-key", "tls.key", "DB_PASSWORD"]
    assert (await registry.request("PUT", "/jobs/greet", json=body)).status == 201


async def test_a_concurrency_key_knows_only_parameters(registry: RunningRegistry) -> None:
    body = {"bundle": "hello@latest", "concurrencyKey": "{{ parameters.a }} {{ steps.b.result }}"}
    refused = await registry.request("PUT", "/jobs/keyed", json=body)
    assert (refused.status, refused.json["type"]) == (400, "urn:stowage:problem:invalid-concurrency-key")
    body = {"bundle": "hello@latest", "concurrencyKey": "day {{ parameters.day.of-month }}"}
    kept = await registry.request("PUT", "/jobs/keyed", json=body)
    assert (kept.status, kept.json["definition"]["concurrencyKey"]) == (201, body["concurrencyKey"])
