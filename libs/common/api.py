"""What a route promises: its scope, what it reads, what it answers. The OpenAPI document is made of it."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_type_hints

from aiohttp import web
from pydantic import BaseModel

from libs.common.auth import Scope
from libs.common.problems import Handler
from libs.common.reading import read_model, read_query, refuse_query

_OPERATION = "operation"


@dataclass(frozen=True, slots=True)
class Content:
    """A body that is not one JSON document: its media types, and what it is. It is text where there is an `example`."""

    media_types: tuple[str, ...]
    description: str
    example: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """A header that a request may have, or that an answer has."""

    name: str
    description: str
    example: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error. `body` is None where there is none."""

    body: "type[BaseModel] | Content | None"
    description: str | None = None
    headers: tuple[Header, ...] = ()


Body: TypeAlias = type[BaseModel] | Content
Kind: TypeAlias = str | tuple[int, str]
"""A kind of problem in libs.common.problem_types; with a status where it is not answered as it is there."""

Answers: TypeAlias = Mapping[int, "type[BaseModel] | Content | Answer"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What is known of a route. `scope` is None for those that need no token.

    A token that has the scope for some slugs only may ask a route whose path has the slug, if that is one of them, and
    one that is `by_slug`: its handler itself sees to what the token is for.
    """

    scope: Scope | None
    by_slug: bool
    summary: str
    description: str
    query: type[BaseModel] | None
    body: Body | None
    answers: Mapping[int, Answer]
    errors: tuple[Kind, ...]
    headers: tuple[Header, ...]


def operation(
    scope: Scope | None,
    *,
    by_slug: bool = False,
    answers: Answers,
    errors: Sequence[Kind] = (),
    body: Body | None = None,
    headers: Sequence[Header] = (),
) -> Callable[[Callable[..., Awaitable[web.StreamResponse]]], Handler]:
    """Declare a route. One without a declaration can't be registered.

    A handler that takes `query` gets the query string as the model that its annotation names, one that takes `body`
    the JSON body; a handler without `query` has none, and any parameter is refused. `body` is for what the handler
    reads by itself, `headers` are those of requests. `errors` are kinds of problems beyond those that every route may
    answer with. The docstring's first line is the summary, what follows is the description.
    """

    def decorate(handler: Callable[..., Awaitable[web.StreamResponse]]) -> Handler:
        hints = get_type_hints(handler)
        parameters = inspect.signature(handler).parameters
        query = hints["query"] if "query" in parameters else None
        model = hints["body"] if "body" in parameters else None
        summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n")
        declared = Operation(
            scope,
            by_slug,
            summary.strip(),
            description.strip(),
            query,
            model or body,
            {status: _answer(answer) for status, answer in answers.items()},
            tuple(errors),
            tuple(headers),
        )

        @functools.wraps(handler)
        async def handle(request: web.Request) -> web.StreamResponse:
            read: dict[str, Any] = {}
            if query is None:
                refuse_query(request)
            else:
                read["query"] = read_query(request, query)
            if model is not None:
                read["body"] = await read_model(request, model)
            return await handler(request, **read)

        setattr(handle, _OPERATION, declared)
        return handle

    return decorate


def operation_of(handler: object) -> Operation | None:
    """What was declared of a handler; None for one of the router's own, which answer 404 and 405."""
    declared = getattr(handler, _OPERATION, None)
    return declared if isinstance(declared, Operation) else None


def _answer(declared: "type[BaseModel] | Content | Answer") -> Answer:
    return declared if isinstance(declared, Answer) else Answer(declared)
