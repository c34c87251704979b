"""What the HTTP side of all services has in common: tokens, request ids, health, errors, clean shutdown."""

import asyncio
import contextlib
import gc
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import Counter
from pydantic import BaseModel

from libs.common.api import Answer, Content, operation, operation_of
from libs.common.audit import Origin, answer_to
from libs.common.auth import Authenticate, Principal
from libs.common.conditional import JSON_HEADERS, tags_middleware
from libs.common.cors import allow_origin, preflight_middleware
from libs.common.errors import Unauthenticated
from libs.common.identifiers import new_id
from libs.common.log import get_logger, log_request
from libs.common.metrics import Metrics
from libs.common.models import Health, Readiness, written
from libs.common.openapi import Tag
from libs.common.problems import ANSWER_BEGUN, REQUEST_ID, Handler, problems_middleware
from libs.common.rate import RequestLimit, RequestRates, refusals_counter
from libs.common.reading import MAX_JSON_BYTES
from libs.common.reference import reference_routes
from libs.common.settings import ServiceSettings

CleanupContext: TypeAlias = Callable[[web.Application], AsyncIterator[None]]
Check: TypeAlias = Callable[[], Awaitable[None]]

PRINCIPAL = web.RequestKey("principal", Principal)
METRICS = web.AppKey("metrics", Metrics)
REFUSALS = web.AppKey("refusals", Counter)
_OPEN_REQUESTS: web.AppKey[dict[int, web.Request]] = web.AppKey("open_requests")
_STOPPING = web.AppKey("stopping", asyncio.Event)
_DRAIN: web.AppKey[Callable[[], Awaitable[None]]] = web.AppKey("drain")

_UNLOGGED_PATHS = ("/livez", "/readyz", "/metrics")
_FIGURES = Content(
    ("text/plain", "application/openmetrics-text"),
    "Figures for Prometheus.",
    'stowage_http_requests_total{method="GET",route="/job-bundles",status="200"} 42.0\n',
)
_CALLER_GONE = 499
"""Logged and counted where the caller hung up before the answer's end; nobody receives it."""
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_READY_SECONDS = 5.0
_COLLECTIONS_BEFORE_FULL = 100


def create_application(
    service: str,
    *,
    routes: Iterable[web.RouteDef],
    internal: Iterable[web.RouteDef] = (),
    authenticate: Authenticate,
    checks: Mapping[str, Check],
    tags: Sequence[Tag],
    limit: RequestLimit,
    cors_origins: Collection[str] = (),
    max_body_bytes: int = MAX_JSON_BYTES,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> web.Application:
    """An application with these routes, and those that every service has, which need no token.

    `checks` are what `/readyz` asks, by name; each raises when its part can't be used. What `/metrics` shows beyond
    requests, event loop and process, the service adds to `application[METRICS]`. `tags` group the routes in the
    reference; those that are `internal` are not in it. `limit` is for each token, `cors_origins` are those whose pages
    may ask. `drain` ends the work for which the service must still be reached when it is told to stop.
    """
    metrics = Metrics()
    refusals = refusals_counter(metrics.registry)
    rates = RequestRates(limit, refusals)
    open_requests: dict[int, web.Request] = {}
    application = web.Application(
        middlewares=[
            _request_middleware(service, metrics, open_requests),
            *([preflight_middleware(cors_origins)] if cors_origins else []),
            problems_middleware(service),
            _auth_middleware(authenticate, rates),
            tags_middleware(),
        ],
        client_max_size=max_body_bytes,
    )
    application[_OPEN_REQUESTS] = open_requests
    stopping = application[_STOPPING] = asyncio.Event()
    if drain is not None:
        application[_DRAIN] = drain
    application[METRICS] = metrics
    application[REFUSALS] = refusals
    served = [*routes, *_common_routes(checks, metrics, stopping)]
    for route in (*served, *internal, *reference_routes(service, served, tags)):
        if operation_of(route.handler) is None:
            raise TypeError(f"{route.method} {route.path} does not say what it promises: use libs.common.api.operation")
        route.register(application.router)
    application.cleanup_ctx.append(_watched_loop)
    application.on_response_prepare.append(_complete_headers(cors_origins, stopping))
    return application


def json_response(model: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A wire model as JSON."""
    return web.Response(status=status, body=written(model), headers=JSON_HEADERS | dict(headers or {}))


async def send_stream(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Answer with `chunks` as they come; where only the headers are asked for (HEAD), with these."""
    if request.method == "HEAD":
        return response
    await response.prepare(request)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


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
    """Serve until `stop` is set and the application is drained; then accept nothing new, let open requests finish, and
    clean up. An empty `host` is all addresses of the machine.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=shutdown_seconds, handler_cancellation=True)
    try:
        await runner.setup()
        site = web.TCPSite(runner, host or None, port)
        await site.start()
        get_logger(service).info("listening", host=host, port=port)
        await stop.wait()
        application[_STOPPING].set()
        if _DRAIN in application:
            await application[_DRAIN]()
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


def _request_middleware(service: str, metrics: Metrics, open_requests: dict[int, web.Request]) -> Middleware:
    log = get_logger(service)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else new_id("req")
        request[REQUEST_ID] = request_id
        started = time.perf_counter()
        status = 500
        open_requests[id(request)] = request  # callers may give several requests one request id
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as redirect:
            status = redirect.status
            raise
        except asyncio.CancelledError:
            status = _CALLER_GONE
            raise
        finally:
            seconds = time.perf_counter() - started
            del open_requests[id(request)]
            metrics.observe_request(request, status, seconds)
            if request.path not in _UNLOGGED_PATHS:
                principal = request.get(PRINCIPAL)
                log_request(
                    log,
                    method=request.method,
                    path=request.path,
                    status=status,
                    ms=round(seconds * 1000, 1),
                    actor=principal.subject if principal else None,
                    request_id=request_id,
                )

    return middleware


def _auth_middleware(authenticate: Authenticate, rates: RequestRates) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        declared = operation_of(request.match_info.handler)  # None where no route matched, which is then 404 or 405
        wrong_method = isinstance(request.match_info.http_exception, web.HTTPMethodNotAllowed)
        if wrong_method or (declared is not None and declared.scope is None):
            return await handler(request)  # which methods a path takes is in the reference, for everybody
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("this needs a token: send the header “Authorization: Bearer <token>”.")
        answer_to(request[REQUEST_ID], request.remote)
        principal = await authenticate(token.strip())
        if principal is None:
            raise Unauthenticated("the token is unknown, expired or revoked.")
        request[PRINCIPAL] = principal
        rates.admit(principal)
        if declared is not None and declared.scope is not None:
            if declared.by_slug:
                principal.require_some(declared.scope)
            else:
                principal.require(declared.scope, request.match_info.get("slug"))
        return await handler(request)

    return middleware


def _complete_headers(
    cors_origins: Collection[str], stopping: asyncio.Event
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Give every answer, also those that are streamed, the headers that all have.

    One of a service that is stopping is the last on its connection: nobody is to ask on one that is being closed.
    """

    async def complete(request: web.Request, response: web.StreamResponse) -> None:
        request[ANSWER_BEGUN] = True
        response.headers["X-Request-Id"] = request[REQUEST_ID]
        if cors_origins:
            allow_origin(request, response, cors_origins)
        if stopping.is_set() and not isinstance(response, web.WebSocketResponse):
            response.headers["Connection"] = "close"
            response.force_close()

    return complete


async def _watched_loop(application: web.Application) -> AsyncIterator[None]:
    async with application[METRICS].watching_loop():
        yield


def _common_routes(checks: Mapping[str, Check], metrics: Metrics, stopping: asyncio.Event) -> list[web.RouteDef]:
    async def ask(check: Check) -> str:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await check()
        except Exception as error:  # noqa: BLE001  # whatever is wrong, the answer is: not ready
            return f"failed: {type(error).__name__}"
        return "ok"

    @operation(None, answers={200: Health})
    async def livez(_request: web.Request) -> web.Response:
        """Say that the process answers."""
        return json_response(Health(status="ok"))

    @operation(
        None,
        answers={200: Answer(Readiness, "It can do its work."), 503: Answer(Readiness, "Something it needs is away.")},
    )
    async def readyz(_request: web.Request) -> web.Response:
        """Say whether everything that it needs can be used."""
        results = await asyncio.gather(*(ask(check) for check in checks.values()))
        parts = dict(zip(checks, results, strict=True))
        if stopping.is_set():
            parts["process"] = "stopping"
        ready = all(result == "ok" for result in parts.values())
        return json_response(
            Readiness(status="ok" if ready else "unavailable", checks=parts), status=200 if ready else 503
        )

    figures = operation(None, answers={200: _FIGURES})(metrics.answer)
    return [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", figures)]


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
