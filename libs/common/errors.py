"""Domain errors. They know nothing of HTTP; `libs.common.problems` maps them to answers."""

from typing import Any, ClassVar


class StowageError(Exception):
    """Something a caller can act on.

    `message` is a sentence for a person, `details` are JSON-ready facts for a program, `kind` is the stable name
    of the problem that clients may match on.
    """

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, kind: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if kind is not None:
            self.kind = kind  # type: ignore[misc]  # an instance may be more precise than its class


class InvalidRequest(StowageError):
    """The request itself is malformed: a field, a name, a number."""

    kind = "invalid-request"


class Unprocessable(StowageError):
    """The request is well-formed, but what it carries can't be accepted: a damaged tarball, a wrong manifest."""

    kind = "unprocessable"


class Unauthenticated(StowageError):
    """No token, or one that is unknown, expired or revoked."""

    kind = "unauthenticated"


class Forbidden(StowageError):
    """The token is good, but lacks the scope that the operation needs."""

    kind = "forbidden"


class NotFound(StowageError):
    """The named thing does not exist."""

    kind = "not-found"


class Gone(StowageError):
    """The named thing was here, and was removed on purpose; the message says by what, and how to get it back."""

    kind = "gone"


class Conflict(StowageError):
    """The request contradicts the present state."""

    kind = "conflict"


class Busy(Conflict):
    """The very same is being done just now. It may be asked for again after `retry_after_seconds`."""

    kind = "busy"

    def __init__(self, message: str, *, kind: str | None = None, retry_after_seconds: int, **details: Any) -> None:
        super().__init__(message, kind=kind, **details)
        self.retry_after_seconds = retry_after_seconds


class PreconditionFailed(StowageError):
    """The caller's belief about the present state is out of date."""

    kind = "precondition-failed"


class TooLarge(StowageError):
    """The body exceeds a limit; the message names the limit."""

    kind = "too-large"


class UnsupportedMediaType(StowageError):
    """The body is not of a type that the operation takes."""

    kind = "unsupported-media-type"


class TooManyRequests(StowageError):
    """There is no room for it just now. It may be asked for again after `retry_after_seconds`."""

    kind = "too-many-requests"

    def __init__(self, message: str, *, kind: str | None = None, retry_after_seconds: int, **details: Any) -> None:
        super().__init__(message, kind=kind, **details)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(StowageError):
    """A part that we depend on can't be reached just now; trying again later may succeed."""

    kind = "unavailable"
