"""Wiring: from settings to an application."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from libs.common.auth import Principal
from libs.common.background import beside
from libs.common.client import RegistryClient
from libs.common.database import Notifications, Pool, open_pool
from libs.common.idempotency import IDEMPOTENCY_KEYS, IdempotencyKeys
from libs.common.introspection import CachedIntrospection
from libs.common.journal import Journal
from libs.common.objects import ObjectStore
from libs.common.rate import RequestLimit, UnknownTokens
from libs.common.web import METRICS, REFUSALS, CleanupContext, create_application
from services.builder.builds import Builds
from services.builder.imports import Imports
from services.builder.ledger import Ledger
from services.builder.logs import BuildLogs
from services.builder.recovery import Recovery
from services.builder.retention import expire_regularly
from services.builder.routes import IMPORTS, LOGS, TAGS, routes
from services.builder.settings import BuilderSettings
from services.builder.store import JOURNAL_GUARD
from services.builder.takeover import Takeover
from services.builder.toolchain import find_toolchain
from services.builder.worker import Worker, new_holder

SERVICE = "builder"

_POOL = web.AppKey("pool", Pool)
_OBJECTS = web.AppKey("objects", ObjectStore)
_REGISTRY = web.AppKey("registry", RegistryClient)
_INTROSPECTION = web.AppKey("introspection", CachedIntrospection)
_WORKER = web.AppKey("worker", Worker)
_STOPPING = web.AppKey("stopping", asyncio.Event)


def create_app(settings: BuilderSettings) -> web.Application:
    """The builder as `settings` describe it."""

    async def authenticate(token: str) -> Principal | None:
        return await application[_INTROSPECTION](token)

    async def database() -> None:
        await application[_POOL].fetchval("SELECT 1")

    async def bucket() -> None:
        await asyncio.to_thread(application[_OBJECTS].check)

    application = create_application(
        SERVICE,
        routes=routes(),
        tags=TAGS,
        authenticate=authenticate,
        checks={"database": database, "bucket": bucket},
        limit=RequestLimit.of(settings),
        cors_origins=settings.cors_origins,
    )
    application[_STOPPING] = asyncio.Event()
    application.cleanup_ctx.append(_connections(settings))
    application.cleanup_ctx.append(_retention(settings))
    application.cleanup_ctx.append(_work(settings))
    application.on_shutdown.append(_stop)
    return application


def _connections(settings: BuilderSettings) -> CleanupContext:
    async def context(application: web.Application) -> AsyncIterator[None]:
        url = settings.database_url.get_secret_value()
        objects = ObjectStore(settings)
        try:
            async with (
                open_pool(url, size=settings.database_pool_size, application_name=f"stowage-{SERVICE}") as pool,
                RegistryClient(settings.registry_url, settings.service_token.get_secret_value()) as registry,
            ):
                application[_POOL] = pool
                application[METRICS].watch_pool(pool)
                application[_OBJECTS] = objects
                application[_REGISTRY] = registry
                application[_INTROSPECTION] = CachedIntrospection(
                    registry, UnknownTokens.of(settings, application[REFUSALS])
                )
                keys = IdempotencyKeys(pool, SERVICE, keep_seconds=settings.idempotency_key_seconds)
                application[IDEMPOTENCY_KEYS] = keys
                async with keys.forgetting():
                    yield
        finally:
            objects.close()

    return context


def _retention(settings: BuilderSettings) -> CleanupContext:
    async def context(application: web.Application) -> AsyncIterator[None]:
        if settings.retention_days is None:
            yield
            return
        pool, objects = application[_POOL], application[_OBJECTS]
        async with beside(expire_regularly(pool, objects, settings.retention_days)):
            yield

    return context


def _work(settings: BuilderSettings) -> CleanupContext:
    async def context(application: web.Application) -> AsyncIterator[None]:
        pool, registry, stopping = application[_POOL], application[_REGISTRY], application[_STOPPING]
        notifications = Notifications(settings.database_url.get_secret_value(), f"{SERVICE}_journal")
        journal = Journal(pool, SERVICE, notifications, guard=JOURNAL_GUARD)
        ledger = Ledger(pool, journal, new_holder())
        logs = BuildLogs(pool, journal, application[_OBJECTS], stopping)
        builds = Builds(
            settings=settings,
            toolchain=find_toolchain(),
            registry=registry,
            ledger=ledger,
            journal=journal,
            logs=logs,
        )
        worker = Worker(settings, ledger, builds, registry)
        application[_WORKER] = worker
        application[LOGS] = logs
        application[IMPORTS] = Imports(
            examples_dir=settings.examples_dir,
            pool=pool,
            journal=journal,
            worker=worker,
            keep_alive_seconds=settings.keep_alive_seconds,
            stopping=stopping,
        )
        recovery = Recovery(settings, pool, builds)
        takeover = Takeover(settings, ledger, worker, registry, notifications)
        async with notifications.listening(), recovery.watching(), worker.beating(), takeover.watching():
            yield

    return context


async def _stop(application: web.Application) -> None:
    """Hand back what is being built, so that those who watch hear of it, and then end those who watch."""
    await application[_WORKER].stop()
    application[_STOPPING].set()
