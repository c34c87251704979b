"""What the registry's routes work with, and how each is opened and closed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web
from prometheus_client import Gauge

from libs.common.background import beside
from libs.common.conditional import KeptAnswers
from libs.common.database import Pool, open_pool
from libs.common.idempotency import IDEMPOTENCY_KEYS, IdempotencyKeys
from libs.common.log import get_logger
from libs.common.objects import ObjectStore
from libs.common.rate import UnknownTokens
from libs.common.web import METRICS, REFUSALS, CleanupContext
from services.registry import upkeep
from services.registry.checkpoints import Checkpoints, seal_regularly
from services.registry.diff import Differ, TextBounds
from services.registry.limits import UploadLimits
from services.registry.notes import Signer
from services.registry.publication import Publisher
from services.registry.rollback import Restorer
from services.registry.settings import RegistrySettings
from services.registry.sweep import sweep_regularly
from services.registry.tokens import Authenticator

SETTINGS = web.AppKey("settings", RegistrySettings)
POOL: web.AppKey[Pool] = web.AppKey("pool")
OBJECTS = web.AppKey("objects", ObjectStore)
PUBLISHER = web.AppKey("publisher", Publisher)
DIFFER = web.AppKey("differ", Differ)
RESTORER = web.AppKey("restorer", Restorer)
CHECKPOINTS = web.AppKey("checkpoints", Checkpoints)
UPLOADS = web.AppKey("uploads", UploadLimits)
RESOLUTIONS = web.AppKey("resolutions", KeptAnswers)
AUTHENTICATOR = web.AppKey("authenticator", Authenticator)


async def database(app: web.Application) -> AsyncIterator[None]:
    """The pool of connections."""
    settings = app[SETTINGS]
    url = settings.database_url.get_secret_value()
    async with open_pool(url, size=settings.database_pool_size, application_name="stowage-registry") as pool:
        app[POOL] = pool
        app[METRICS].watch_pool(pool)
        app[AUTHENTICATOR] = Authenticator(
            pool, UnknownTokens.of(settings, app[REFUSALS]), cache_seconds=settings.token_cache_seconds
        )
        app[UPLOADS] = UploadLimits(settings, app[REFUSALS])
        keys = app[IDEMPOTENCY_KEYS] = IdempotencyKeys(pool, "registry", keep_seconds=settings.idempotency_key_seconds)
        async with keys.forgetting():
            yield


async def token_use(app: web.Application) -> AsyncIterator[None]:
    """Notes of when tokens were used last."""
    authenticator = app[AUTHENTICATOR]
    async with beside(authenticator.note_use_regularly(app[SETTINGS].token_use_interval_seconds)):
        yield
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await authenticator.note_use()


async def bucket(app: web.Application) -> AsyncIterator[None]:
    """The object store; opening it asks nothing of the server."""
    objects = await asyncio.to_thread(ObjectStore, app[SETTINGS])
    app[OBJECTS] = objects
    yield
    objects.close()


async def publisher(app: web.Application) -> AsyncIterator[None]:
    """Publications and rollbacks, which leave half of the connections to everybody else."""
    settings = app[SETTINGS]
    slots = asyncio.Semaphore(max(1, settings.database_pool_size // 2))
    allowed = settings.platform_patterns
    app[PUBLISHER] = Publisher(app[POOL], app[OBJECTS], settings.archive_limits, slots, allowed_platforms=allowed)
    app[RESTORER] = Restorer(app[POOL], app[OBJECTS], slots, allowed_platforms=allowed)
    yield


async def differ(app: web.Application) -> AsyncIterator[None]:
    """Comparisons of artifacts."""
    settings = app[SETTINGS]
    bounds = TextBounds(file_bytes=settings.diff_file_bytes, answer_bytes=settings.diff_answer_bytes)
    app[DIFFER] = Differ(app[POOL], app[OBJECTS], bounds)
    yield


async def housekeeping(app: web.Application) -> AsyncIterator[None]:
    """The sweep of stale uploads, and what one registry does at a time."""
    settings = app[SETTINGS]
    sweeping = sweep_regularly(
        app[OBJECTS],
        max_age_seconds=settings.upload_max_age_seconds,
        interval_seconds=settings.sweep_interval_seconds,
    )
    tasks = [asyncio.create_task(work) for work in (sweeping, upkeep.keep_up(settings, app[POOL], app[OBJECTS]))]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def sealing(app: web.Application) -> AsyncIterator[None]:
    """The sealing of the audit trail, and its checkpoints where there is a key. OSError, InvalidNote for a bad key."""
    settings = app[SETTINGS]
    signer = None
    if settings.audit_key_file is None:
        get_logger("registry").warning("audit_not_signed", reason="STOWAGE_REGISTRY_AUDIT_KEY_FILE is not set")
    else:
        signer = await asyncio.to_thread(Signer.from_file, settings.audit_name, settings.audit_key_file)
    interval = settings.audit_checkpoint_seconds
    earlier = settings.earlier_audit_keys
    checkpoints = Checkpoints(app[POOL], app[OBJECTS], signer, interval_seconds=interval, earlier=earlier)
    app[CHECKPOINTS] = checkpoints
    Gauge(
        "stowage_audit_trail_inconsistent",
        "1 while the audit trail contradicts what was signed of it, and nothing more is signed.",
        registry=app[METRICS].registry,
    ).set_function(lambda: float(checkpoints.refusal is not None))
    async with beside(seal_regularly(app[POOL], checkpoints, interval_seconds=settings.audit_seal_seconds)):
        yield


CONTEXTS: tuple[CleanupContext, ...] = (database, token_use, bucket, publisher, differ, housekeeping, sealing)
"""In the order in which they are opened."""
