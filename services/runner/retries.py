"""Whether a run is tried again after an attempt that did not succeed, and when."""

from secrets import SystemRandom

from libs.common.models import Backoff, RetryOn, RetryPolicy, RunState
from services.runner.endings import Outcome

_RANDOM = SystemRandom()

_UNAVAILABLE = {
    "extraction_failed",
    "image_unavailable",
    "input_unwritable",
    "not_started",
    "object_store_unavailable",
    "scratch",
    "secret_unreadable",
    "unschedulable",
}
"""Failures of what is around a run: another attempt, perhaps on another machine, may do better."""

_PERMANENT = {
    "archive_refused",
    "class_unavailable",
    "entry-missing",
    "entry_missing",
    "input_missing",
    "integrity",
    "invalid-manifest",
    "job_refused",
    "manifest-mismatch",
    "object_missing",
    "platform_mismatch",
    "runtime_unavailable",
    "secret_missing",
    "version_quarantined",
}
"""Refusals that are the same however often one asks."""


def seconds_to_next_attempt(
    policy: RetryPolicy, outcome: Outcome, *, attempt: int, max_attempts: int, handler_called: bool
) -> float | None:
    """How long to wait before the run is tried again, or None where this was its last attempt.

    Where this runner is lost itself, whoever leases the run next judges.
    """
    reason = _reason(outcome, handler_called=handler_called)
    if reason is None or reason not in policy.on or attempt >= max_attempts:
        return None
    return _delay(policy.backoff, attempt)


def may_be_left(policy: RetryPolicy, *, handler_called: bool) -> bool:
    """Whether a runner that stops may hand the run back, so that another begins it anew."""
    return not handler_called or RetryOn.LOST in policy.on


def _reason(outcome: Outcome, *, handler_called: bool) -> RetryOn | None:
    if outcome.state is RunState.TIMED_OUT:
        return RetryOn.TIMED_OUT
    if outcome.state is RunState.LOST:
        return RetryOn.LOST
    if outcome.state is not RunState.FAILED or outcome.error is None:
        return None
    if not handler_called and outcome.error.type in _UNAVAILABLE:
        return RetryOn.UNAVAILABLE
    if not handler_called and outcome.error.type in _PERMANENT:
        return None
    return RetryOn.FAILED


def _delay(backoff: Backoff, attempt: int) -> float:
    factor = 2 ** (attempt - 1) if backoff.kind == "exponential" else 1
    seconds = min(backoff.seconds * factor, backoff.max_seconds)
    return seconds * _RANDOM.uniform(1 - backoff.jitter, 1 + backoff.jitter)
