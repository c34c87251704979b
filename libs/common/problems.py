"""Errors on the wire: problem documents (RFC 9457), and the one table from domain errors to HTTP statuses."""

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeAlias

import asyncpg
from aiohttp import web
from aiohttp.typedefs import Middleware

from libs.common import errors
from libs.common.database import is_connection_lost
from libs.common.log import get_logger
from libs.common.problem_types import PREFIX

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = web.RequestKey("request_id", str)
"""The id under which a request can be found in the logs and the audit trail."""

ANSWER_BEGUN = web.RequestKey("answer_begun", bool)
"""Whether the status line of the answer has been sent."""

_STATUS: dict[type[errors.StowageError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Gone: HTTPStatus.GONE,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.Unprocessable: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

_ROUTE_PROBLEMS = {
    HTTPStatus.NOT_FOUND: "there is nothing under this path. GET /docs shows what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "this path does not take this method; the header Allow names those that it takes.",
}
"""What aiohttp's router says, in words that help."""

_ROUTE_KINDS = {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "range-not-satisfiable"}
"""Stable where the phrase of the standard library is not."""


def problem(
    status: HTTPStatus, *, kind: str, detail: str, request_id: str, members: dict[str, Any] | None = None
) -> web.Response:
    """A problem document. `kind` becomes its stable `type`; `members` are facts for programs."""
    body = {
        **(members or {}),
        "type": PREFIX + kind,
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "requestId": request_id,
    }
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="stowage"'
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "2"
    return web.Response(
        status=status.value,
        text=json.dumps(body, ensure_ascii=False) + "\n",
        content_type="application/problem+json",
        charset="utf-8",
        headers=headers,
    )


def status_of(error: type[errors.StowageError]) -> HTTPStatus:
    """What a domain error of this class is answered with."""
    return next((_STATUS[kind] for kind in error.__mro__ if kind in _STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


def _render(error: Exception, request_id: str) -> web.Response:
    match error:
        case errors.StowageError():
            answer = problem(
                status_of(type(error)),
                kind=error.kind,
                detail=error.message,
                request_id=request_id,
                members=error.details,
            )
            if isinstance(error, errors.TooManyRequests | errors.Busy):
                answer.headers["Retry-After"] = str(error.retry_after_seconds)
            return answer
        case web.HTTPException():
            status = HTTPStatus(error.status)
            kind = _ROUTE_KINDS.get(status) or status.phrase.lower().replace(" ", "-")
            detail = _ROUTE_PROBLEMS.get(status) or error.reason
            rendered = problem(status, kind=kind, detail=detail, request_id=request_id)
            if "Allow" in error.headers:
                rendered.headers["Allow"] = error.headers["Allow"]
            return rendered
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.UntranslatableCharacterError():
            return problem(
                HTTPStatus.BAD_REQUEST,
                kind="invalid-request",
                detail="the request has a character in it, NUL most likely, that no text may contain. Remove it.",
                request_id=request_id,
            )
        case _ if _is_database_away(error):
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                kind="database-unavailable",
                detail="the database can't be reached just now. Try again in a moment.",
                request_id=request_id,
            )
        case _:
            return problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                kind="internal",
                detail="something went wrong on our side. The log has it under this request id.",
                request_id=request_id,
            )


def _is_database_away(error: Exception) -> bool:
    # Other errors of the operating system may come from anywhere in a handler, and are faults of ours.
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError)
    return is_connection_lost(error)


def problems_middleware(service: str) -> Middleware:
    """Answer every error as a problem document.

    Once an answer has begun the connection is broken instead: a body that ended early must never look whole.
    """
    log = get_logger(service)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            return _render(error, request[REQUEST_ID])
        except ConnectionResetError:
            raise  # the client went away; there is nobody to answer
        except Exception as error:
            if request.get(ANSWER_BEGUN, False):
                raise
            answer = _render(error, request[REQUEST_ID])
            if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception(
                    "request_failed", method=request.method, path=request.path, request_id=request[REQUEST_ID]
                )
            elif answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                log.warning(
                    "dependency_unavailable", path=request.path, error=str(error), request_id=request[REQUEST_ID]
                )
            return answer

    return middleware
