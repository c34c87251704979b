"""What the HTTP side of all services has in common: tokens, request ids, health, errors, clean shutdown."""

import asyncio
import contextlib
import gc
import math
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ValidationError

from libs.common.audit import Origin
from libs.common.auth import Authenticate, Principal, Scope
from libs.common.errors import InvalidRequest, TooLarge, Unauthenticated
from libs.common.identifiers import new_id
from libs.common.log import get_logger
from libs.common.metrics import Metrics
from libs.common.problems import ANSWER_BEGUN, REQUEST_ID, Handler, problems_middleware
from libs.common.settings import ServiceSettings

CleanupContext: TypeAlias = Callable[[web.Application], AsyncIterator[None]]
Check: TypeAlias = Callable[[], Awaitable[None]]
Model = TypeVar("Model", bound=BaseModel)

PRINCIPAL = web.RequestKey("principal", Principal)
METRICS = web.AppKey("metrics", Metrics)
_OPEN_REQUESTS: web.AppKey[dict[str, web.Request]] = web.AppKey("open_requests")

_SCOPE_ATTRIBUTE = "required_scope"
_OPEN_PATHS = ("/livez", "/readyz", "/metrics")
_CALLER_GONE = 499
"""Logged and counted where the caller hung up before the answer's end; nobody receives it."""
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_READY_SECONDS = 5.0
_COLLECTIONS_BEFORE_FULL = 100
_MAX_JSON_BYTES = 1024 * 1024


def requires(scope: Scope) -> Callable[[Handler], Handler]:
    """Declare the scope that a route needs. A route without a declaration can't be registered."""

    def decorate(handler: Handler) -> Handler:
        setattr(handler, _SCOPE_ATTRIBUTE, scope)
        return handler

    return decorate


def create_application(
    service: str,
    *,
    routes: Iterable[web.RouteDef],
    authenticate: Authenticate,
    checks: Mapping[str, Check],
    max_body_bytes: int = _MAX_JSON_BYTES,
) -> web.Application:
    """An application whose every route but `/livez`, `/readyz` and `/metrics` wants a token with the route's scope.

    `checks` are what `/readyz` asks, by name; each raises when its part can't be used. What `/metrics` shows beyond
    requests, event loop and process, the service adds to `application[METRICS]`.
    """
    application = web.Application(
        middlewares=[_request_middleware(service), problems_middleware(service), _auth_middleware(authenticate)],
        client_max_size=max_body_bytes,
    )
    application[_OPEN_REQUESTS] = {}
    application[METRICS] = Metrics()
    for route in routes:
        if not isinstance(getattr(route.handler, _SCOPE_ATTRIBUTE, None), Scope):
            raise TypeError(f"{route.method} {route.path} does not say which scope it requires")
        route.register(application.router)
    application.router.add_get("/livez", _livez)
    application.router.add_get("/readyz", _readyz(checks))
    application.router.add_get("/metrics", application[METRICS].answer)
    application.cleanup_ctx.append(_watched_loop)
    application.on_response_prepare.append(_mark_begun)
    return application


async def read_model(request: web.Request, model: type[Model], *, max_bytes: int = _MAX_JSON_BYTES) -> Model:
    """The JSON body as `model`, or InvalidRequest naming each field that is wrong, or TooLarge."""
    return parse_model(await read_body(request, max_bytes=max_bytes), model)


async def read_body(request: web.Request, *, max_bytes: int) -> bytes:
    """The whole body, or TooLarge."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"the body is larger than {max_bytes} bytes, which is the limit here.", maxBytes=max_bytes)
    return bytes(body)


def parse_model(body: bytes, model: type[Model]) -> Model:
    """JSON as `model`, or InvalidRequest naming each field that is wrong. Blocks: large bodies belong in a thread."""
    try:
        parsed = model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid("the body", error) from None
    _check_storable(parsed.model_dump())
    return parsed


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


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query string as `model`, or InvalidRequest naming each parameter that is wrong or unknown."""
    try:
        return model.model_validate(dict(request.query))
    except ValidationError as error:
        raise _invalid("the query string", error) from None


def json_response(model: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A wire model as JSON, with a newline at its end for people's terminals."""
    return web.Response(
        status=status,
        text=model.model_dump_json(by_alias=True) + "\n",
        content_type="application/json",
        charset="utf-8",
        headers=headers,
    )


def origin_of(request: web.Request) -> Origin:
    """Who asks, for the audit trail."""
    return Origin(actor=request[PRINCIPAL].subject, request_id=request[REQUEST_ID], client=request.remote)


async def serve_until_signalled(application: web.Application, *, service: str, settings: ServiceSettings) -> None:
    """`serve` as the business of this process, until SIGTERM or SIGINT."""
    application.on_startup.append(_spare_garbage_collector)
    async with stop_on_signals() as stop:
        await serve(
            application,
            service=service,
            host=settings.host,
            port=settings.port,
            shutdown_seconds=settings.shutdown_seconds,
            stop=stop,
        )


async def _spare_garbage_collector(_application: web.Application) -> None:
    """Keep full collections from stopping the loop: what was made so far is left out, and they are made less often.

    What is in flight is more than what is garbage, and little of that has cycles; looking at it all takes 50 ms.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _COLLECTIONS_BEFORE_FULL)


async def serve(
    application: web.Application, *, service: str, host: str, port: int, shutdown_seconds: float, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set; then accept nothing new, let open requests finish, and clean up."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=shutdown_seconds, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        get_logger(service).info("listening", host=host, port=port)
        await stop.wait()
        await site.stop()
        await _until_bodies_are_received(application, shutdown_seconds)
    finally:
        await runner.cleanup()


async def _until_bodies_are_received(application: web.Application, seconds: float) -> None:
    """Wait, but no longer than that, for bodies that are still coming in: aiohttp's shutdown drops what comes then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # Bodies arrive inside aiohttp's parser, which has no event for their end.
            while any(not request.content.is_eof() for request in application[_OPEN_REQUESTS].values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def _invalid(where: str, error: ValidationError) -> InvalidRequest:
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]) or "(whole)", "message": item["msg"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    summary = "; ".join(f"{item['field']}: {item['message']}" for item in problems[:5])
    return InvalidRequest(f"{where} is not what is expected here: {summary}.", errors=problems)


def _request_middleware(service: str) -> Middleware:
    log = get_logger(service)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else new_id("req")
        request[REQUEST_ID] = request_id
        started = time.perf_counter()
        status = 500
        open_id = new_id("open")  # callers may give several requests one id
        request.app[_OPEN_REQUESTS][open_id] = request
        try:
            response = await handler(request)
            status = response.status
            if not response.prepared:
                response.headers["X-Request-Id"] = request_id
            return response
        except web.HTTPException as redirect:
            status = redirect.status
            redirect.headers["X-Request-Id"] = request_id
            raise
        except asyncio.CancelledError:
            status = _CALLER_GONE
            raise
        finally:
            seconds = time.perf_counter() - started
            del request.app[_OPEN_REQUESTS][open_id]
            request.app[METRICS].observe_request(request, status, seconds)
            if request.path not in _OPEN_PATHS:
                principal = request.get(PRINCIPAL)
                log.info(
                    "request",
                    method=request.method,
                    path=request.path,
                    status=status,
                    ms=round(seconds * 1000, 1),
                    actor=principal.subject if principal else None,
                    request_id=request_id,
                )

    return middleware


def _auth_middleware(authenticate: Authenticate) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN_PATHS:
            return await handler(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("this needs a token: send the header “Authorization: Bearer <token>”.")
        principal = await authenticate(token.strip())
        if principal is None:
            raise Unauthenticated("the token is unknown, expired or revoked.")
        request[PRINCIPAL] = principal
        scope = getattr(request.match_info.handler, _SCOPE_ATTRIBUTE, None)
        if scope is not None:  # none where no route matched: the answer is then 404 or 405
            principal.require(scope)
        return await handler(request)

    return middleware


async def _mark_begun(request: web.Request, _response: web.StreamResponse) -> None:
    request[ANSWER_BEGUN] = True


async def _watched_loop(application: web.Application) -> AsyncIterator[None]:
    async with application[METRICS].watching_loop():
        yield


async def _livez(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _readyz(checks: Mapping[str, Check]) -> Handler:
    async def ask(check: Check) -> str:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await check()
        except Exception as error:  # noqa: BLE001  # whatever is wrong, the answer is: not ready
            return f"failed: {type(error).__name__}"
        return "ok"

    async def readyz(_request: web.Request) -> web.Response:
        results = await asyncio.gather(*(ask(check) for check in checks.values()))
        parts = dict(zip(checks, results, strict=True))
        ready = all(result == "ok" for result in results)
        return web.json_response(
            {"status": "ok" if ready else "unavailable", "checks": parts}, status=200 if ready else 503
        )

    return readyz


@contextlib.asynccontextmanager
async def stop_on_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
