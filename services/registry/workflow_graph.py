"""Whether the steps of a workflow make a graph that can be executed."""

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from libs.common.errors import InvalidRequest
from libs.common.models import StepDefinition, WorkflowDefinition

_STEP_TEMPLATE = re.compile(r"\{\{\s*steps\.([A-Za-z0-9_]+)")


def check_graph(definition: WorkflowDefinition) -> None:
    """Raise InvalidRequest unless names are unique, dependencies known and free of circles, and sources upstream."""
    steps = {step.name: step for step in definition.steps}
    if len(steps) != len(definition.steps):
        names = [step.name for step in definition.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _wrong(f"steps need names of their own, but these occur twice: {', '.join(twice)}.")
    for step in definition.steps:
        unknown = sorted(set(step.depends_on) - steps.keys())
        if unknown:
            raise _wrong(f"step {step.name} depends on {', '.join(unknown)}, which the workflow does not have.")
    upstream = _upstream(steps)
    for step in definition.steps:
        _check_sources(step, upstream[step.name])


def _upstream(steps: dict[str, StepDefinition]) -> dict[str, set[str]]:
    """By step all steps that are over when it begins."""
    try:
        order = list(TopologicalSorter({name: step.depends_on for name, step in steps.items()}).static_order())
    except CycleError as error:
        raise _wrong(f"the steps wait for each other: {' → '.join(error.args[1])}.") from None
    upstream: dict[str, set[str]] = {}
    for name in order:
        direct = steps[name].depends_on
        upstream[name] = set(direct).union(*(upstream[other] for other in direct))
    return upstream


def _check_sources(step: StepDefinition, upstream: set[str]) -> None:
    for name, source in step.inputs.items():
        if (source.step is None) == (source.run is None):
            raise _wrong(f"input {name} of step {step.name} needs either a step or a run that it comes from.")
        if source.step is not None and source.step not in upstream:
            raise _wrong(_not_upstream(step, f"takes its input {name}", source.step))
    templated: list[Any] = [step.parameters]
    templated += [text for source in step.inputs.values() for text in (source.run, source.path)]
    for value in templated:
        for other in _referred_steps(value):
            if other not in upstream:
                raise _wrong(_not_upstream(step, "takes a value", other))


def _referred_steps(value: Any) -> Iterator[str]:
    """The steps that templates such as `{{ steps.normalize.result.minute }}` name, anywhere in a JSON value."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield from _STEP_TEMPLATE.findall(part)
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _not_upstream(step: StepDefinition, what: str, other: str) -> str:
    return f"step {step.name} {what} from step {other}, but does not wait for it. Name it in dependsOn."


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, kind="invalid-workflow")
