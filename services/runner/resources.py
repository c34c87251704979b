"""From records to the shapes on the wire."""

from libs.common.models import Failure, InputSource, Run, Sandbox, Step, Timings, WorkflowRun
from services.runner.store import RunRecord
from services.runner.workflow_store import StepRecord
from services.runner.workflows import WorkflowRunView


def run_resource(record: RunRecord) -> Run:
    """A run."""
    return Run(
        id=record.id,
        state=record.state,
        slug=record.slug,
        version=record.version,
        revision=record.revision,
        digest=record.digest,
        job=record.job,
        workflow_run_id=record.workflow_run_id,
        step=record.step,
        parameters=record.parameters,
        inputs={name: InputSource.model_validate(value) for name, value in record.inputs.items()},
        result=record.result,
        error=Failure.model_validate(record.error) if record.error else None,
        progress=record.progress,
        progress_message=record.progress_message,
        attempts=record.attempts,
        next_attempt_at=record.next_attempt_at,
        priority=record.priority,
        concurrency_key=record.concurrency_key,
        timings=Timings(
            queued_ms=record.queued_ms,
            first_byte_ms=record.first_byte_ms,
            fetch_ms=record.fetch_ms,
            start_ms=record.start_ms,
            handler_ms=record.handler_ms,
            upload_ms=record.upload_ms,
            remove_ms=record.remove_ms,
        ),
        sandbox=Sandbox.model_validate(record.sandbox) if record.sandbox else None,
        created_at=record.created_at,
        created_by=record.created_by,
        started_at=record.started_at,
        finished_at=record.finished_at,
        expired_at=record.expired_at,
    )


def workflow_run_resource(view: WorkflowRunView) -> WorkflowRun:
    """A workflow run with its steps."""
    run = view.run
    return WorkflowRun(
        id=run.id,
        workflow=run.workflow,
        state=run.state,
        parameters=run.parameters,
        steps=[_step(step) for step in view.steps],
        created_at=run.created_at,
        created_by=run.created_by,
        finished_at=run.finished_at,
    )


def _step(step: StepRecord) -> Step:
    return Step(
        name=step.name,
        job=step.definition["job"],
        state=step.state,
        run_id=step.run_id,
        result=step.result,
        error=Failure.model_validate(step.error) if step.error else None,
    )
