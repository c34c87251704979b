"""What tokens that are for some slugs only may do at the runner."""

from typing import Any

import pytest

from tests.registry.running import RunningRegistry
from tests.runner.bundles import node, publish
from tests.runner.running import RunningRunner

_CODE = "export const handler = () => 'done'"


@pytest.fixture(scope="module")
async def narrow(registry: RunningRegistry) -> str:
    """A token for what begins with `mine-`, where there is a bundle, a job and a workflow, and others beside them."""
    for slug in ("mine-a", "theirs"):
        await publish(registry, node(_CODE, slug=slug), slug)
    for slug, bundle in (
        ("mine-a", "mine-a"),
        ("mine-of-theirs", "theirs"),
        ("mine-of-nothing", "nothing"),
        ("theirs", "mine-a"),
    ):
        await registry.request("PUT", f"/jobs/{slug}", json={"bundle": f"{bundle}@latest"})
        await registry.request("PUT", f"/workflows/{slug}", json={"steps": [{"name": "one", "job": slug}]})
    return await registry.token_for("ci", "runs:write:mine-*")


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        ({"bundle": "theirs@latest"}, "theirs"),
        ({"bundle": "nothing@latest"}, "nothing"),
        ({"job": "theirs"}, "theirs"),
        ({"job": "nothing"}, "nothing"),
        ({"job": "mine-of-theirs"}, "theirs"),
        ({"job": "mine-of-nothing"}, "nothing"),
    ],
)
async def test_runs_of_other_bundles_are_refused_whether_there_are_any_or_not(
    runner: RunningRunner, narrow: str, body: dict[str, Any], slug: str
) -> None:
    refused = await runner.request("POST", "/runs", token=narrow, json=body)
    assert (refused.status, refused.json["slug"], refused.json["requiredScope"]) == (403, slug, "runs:write")
    assert "mine-*" in refused.json["detail"]


async def test_workflows_are_refused_for_what_their_steps_would_run(
    registry: RunningRegistry, runner: RunningRunner, narrow: str
) -> None:
    for job in ("theirs", "nothing"):
        await registry.request("PUT", f"/workflows/mine-with-{job}", json={"steps": [{"name": "one", "job": job}]})
    for slug, refused in (
        ("theirs", "theirs"),
        ("nothing", "nothing"),
        ("mine-of-theirs", "theirs"),
        ("mine-of-nothing", "nothing"),
        ("mine-with-theirs", "theirs"),
        ("mine-with-nothing", "nothing"),
    ):
        answer = await runner.request("POST", f"/workflows/{slug}/runs", token=narrow, json={})
        assert (answer.status, answer.json["slug"]) == (403, refused)
    accepted = await runner.request("POST", "/workflows/mine-a/runs", token=narrow, json={})
    assert accepted.status == 202
    await runner.workflow_finished(accepted.json["id"])


async def test_own_runs_are_started_and_cancelled_and_others_are_not(runner: RunningRunner, narrow: str) -> None:
    for body in ({"bundle": "mine-a@latest"}, {"job": "mine-a"}):
        started = await runner.request("POST", "/runs", token=narrow, json=body)
        assert started.status == 202, started.body
        await runner.finished(started.json["id"])
        ended = await runner.request("POST", f"/runs/{started.json['id']}/cancel", token=narrow)
        assert ended.status == 409
    theirs = await runner.run("theirs@latest")
    assert (await runner.request("POST", f"/runs/{theirs.id}/cancel", token=narrow)).status == 403
    flow = await runner.request("POST", "/workflows/theirs/runs", json={})
    await runner.workflow_finished(flow.json["id"])
    assert (await runner.request("POST", f"/workflow-runs/{flow.json['id']}/cancel", token=narrow)).status == 403


async def test_inputs_from_other_runs_need_the_right_to_read_runs(
    registry: RunningRegistry, runner: RunningRunner, narrow: str
) -> None:
    theirs = await runner.run("theirs@latest")
    body = {"bundle": "mine-a@latest", "inputs": {"x": {"run": theirs.id, "path": "secret", "optional": True}}}
    refused = await runner.request("POST", "/runs", token=narrow, json=body)
    assert (refused.status, refused.json["requiredScope"]) == (403, "runs:read")
    reader = await registry.token_for("reader", "runs:write:mine-*", "runs:read")
    accepted = await runner.request("POST", "/runs", token=reader, json=body)
    assert accepted.status == 202
    await runner.finished(accepted.json["id"])


async def test_steps_with_inputs_from_other_runs_need_the_right_to_read_runs(
    registry: RunningRegistry, runner: RunningRunner, narrow: str
) -> None:
    step = {"name": "one", "job": "mine-a"}
    other = {"x": {"run": "{{ parameters.other }}", "path": "secret", "optional": True}}
    earlier = {"x": {"step": "one", "path": "note", "optional": True}}
    await registry.request(
        "PUT", "/workflows/mine-reads", json={"parameters": {"other": None}, "steps": [{**step, "inputs": other}]}
    )
    await registry.request(
        "PUT",
        "/workflows/mine-earlier",
        json={"steps": [step, {"name": "two", "job": "mine-a", "dependsOn": ["one"], "inputs": earlier}]},
    )
    refused = await runner.request("POST", "/workflows/mine-reads/runs", token=narrow, json={})
    assert (refused.status, refused.json["requiredScope"]) == (403, "runs:read")
    reader = await registry.token_for("reader", "runs:write:mine-*", "runs:read")
    starter = await registry.token_for("starter", "runs:write")
    for slug, token in (("mine-reads", reader), ("mine-reads", starter), ("mine-earlier", narrow)):
        accepted = await runner.request("POST", f"/workflows/{slug}/runs", token=token, json={})
        assert accepted.status == 202, accepted.body
        await runner.workflow_finished(accepted.json["id"])


async def test_kept_answer_is_not_for_a_token_that_could_not_have_asked(
    registry: RunningRegistry, runner: RunningRunner, narrow: str
) -> None:
    wide = await registry.token_for("ci", "runs:write")
    for body in ({"bundle": "theirs@latest"}, {"job": "theirs"}):
        headers = {"Idempotency-Key": str(body)}
        accepted = await runner.request("POST", "/runs", token=wide, json=body, headers=headers)
        assert accepted.status == 202, accepted.body
        await runner.finished(accepted.json["id"])
        refused = await runner.request("POST", "/runs", token=narrow, json=body, headers=headers)
        assert (refused.status, refused.json["slug"]) == (403, "theirs")
