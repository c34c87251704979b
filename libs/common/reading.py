"""Reading requests: query strings and JSON bodies become models, or refusals that name each part that is wrong."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from libs.common.errors import InvalidRequest, TooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

MAX_JSON_BYTES = 1024 * 1024
"""The largest JSON body, where a route has no limit of its own."""


_IDLE_SECONDS = 60.0
_MAX_PARTS = 100_000
"""Most values in a JSON body: a few bytes each, and a thousand times as much in memory when each is refused by name."""

_NAMED_PROBLEMS = 50


async def read_model(request: web.Request, model: type[Model], *, max_bytes: int = MAX_JSON_BYTES) -> Model:
    """The JSON body as `model`; InvalidRequest naming each field that is wrong, TooLarge or UnsupportedMediaType."""
    require_json(request)
    return parse_model(await read_body(request, max_bytes=max_bytes), model)


def require_json(request: web.Request) -> None:
    """UnsupportedMediaType where the request says that its body is something else; it may say nothing."""
    if request.can_read_body and "Content-Type" in request.headers and request.content_type != "application/json":
        raise UnsupportedMediaType(f"the body is {request.content_type[:100]}; this takes application/json.")


async def read_body(request: web.Request, *, max_bytes: int, setting: str | None = None) -> bytes:
    """The whole body, or TooLarge, which names the setting that the limit is, if it is one."""
    body = bytearray()
    async for chunk in body_chunks(request, idle_seconds=_IDLE_SECONDS):
        body += chunk
        if len(body) > max_bytes:
            where = "here" if setting is None else f"({setting})"
            facts = {} if setting is None else {"setting": setting}
            raise TooLarge(
                f"the body is larger than {max_bytes} bytes, which is the limit {where}.", maxBytes=max_bytes, **facts
            )
    return bytes(body)


async def body_chunks(request: web.Request, *, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes in; InvalidRequest where nothing comes for `idle_seconds`, or it is not what HTTP allows."""
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await request.content.readany()
        except TimeoutError:
            raise InvalidRequest(
                f"nothing of the body came for {idle_seconds:g} seconds. Send it again.", kind="body-stalled"
            ) from None
        except web.RequestPayloadError as error:
            raise InvalidRequest(f"the body is damaged: {error}. Send it again.", kind="body-damaged") from error
        if not chunk:
            return
        yield chunk


def parse_model(body: bytes, model: type[Model]) -> Model:
    """JSON as `model`, or InvalidRequest naming each field that is wrong. Blocks: large bodies belong in a thread."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MAX_PARTS:
        raise InvalidRequest(f"the body has more than {_MAX_PARTS} values. Send fewer.", maxValues=_MAX_PARTS)
    try:
        parsed = model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid("the body", error) from None
    _check_storable(parsed.model_dump())
    return parsed


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query string as `model`, or InvalidRequest naming each parameter that is wrong, unknown or given twice."""
    given = dict(request.query)
    if len(given) != len(request.query):
        raise _given_twice(request)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _invalid("the query string", error) from None


def refuse_query(request: web.Request) -> None:
    """InvalidRequest where there is a query string: a parameter that is not understood must not seem to work."""
    if request.query:
        problems = [{"field": name, "message": "There is no such parameter"} for name in sorted(set(request.query))]
        raise _refusal("the query string", problems)


def _given_twice(request: web.Request) -> InvalidRequest:
    given = Counter(name for name, _ in request.query.items())  # keys() names each once
    return _refusal(
        "the query string",
        [{"field": name, "message": "Given more than once"} for name, times in given.items() if times > 1],
    )


def _check_storable(body: dict[str, Any]) -> None:
    """InvalidRequest for what the parser lets pass, but PostgreSQL can't keep as `jsonb` or `text`."""
    waiting: list[Any] = [body]
    while waiting:
        match waiting.pop():
            case dict() as value:
                waiting += [*value.keys(), *value.values()]
            case list() as value:
                waiting += value
            case str() as value if "\0" in value:
                raise InvalidRequest("the body has a NUL character in a text. Remove it.")
            case float() as value if not math.isfinite(value):
                raise InvalidRequest(f"the body has the number {value}, which is not JSON. Use null.")


def _invalid(where: str, error: ValidationError) -> InvalidRequest:
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]) or "(whole)", "message": item["msg"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return _refusal(where, problems)


def _refusal(where: str, problems: list[dict[str, str]]) -> InvalidRequest:
    summary = "; ".join(f"{item['field']}: {item['message']}" for item in problems[:5])
    return InvalidRequest(f"{where} is not what is expected here: {summary}.", errors=problems[:_NAMED_PROBLEMS])
