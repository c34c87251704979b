"""Wiring of the runner."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from aiohttp import web

from libs.common.auth import Principal
from libs.common.background import beside
from libs.common.client import RegistryClient
from libs.common.database import Notifications, open_pool
from libs.common.idempotency import IDEMPOTENCY_KEYS, IdempotencyKeys
from libs.common.introspection import CachedIntrospection
from libs.common.journal import Journal
from libs.common.log import get_logger
from libs.common.objects import ObjectStore
from libs.common.rate import RequestLimit, UnknownTokens
from libs.common.web import METRICS, REFUSALS, create_application
from services.runner import routes, workflow_routes
from services.runner.acceptance import Acceptance
from services.runner.catalogue import Catalogue
from services.runner.execution import Execution
from services.runner.executors import Executor as RunExecutor
from services.runner.executors import process_executor
from services.runner.interrupts import Watch
from services.runner.lease_holder import Stock
from services.runner.lifecycle import Lifecycle
from services.runner.logs import RunLogs
from services.runner.metrics import RunMetrics
from services.runner.remote.allowance import most_bytes_of_result
from services.runner.remote.attempt import remote_executor
from services.runner.remote.claims import AGENT_PATH, CLAIMS, Claims, get_attempt
from services.runner.remote.place import Place
from services.runner.retention import keep_regularly
from services.runner.secrets import DirectorySecrets, EnvironmentSecrets, SecretProvider
from services.runner.settings import RunnerSettings
from services.runner.standing import Standing
from services.runner.store import JOURNAL_GUARD, RUNS_CHANNEL
from services.runner.turns import Backlog, Turns
from services.runner.uploads import Uploads
from services.runner.worker import Stopping, Worker, WorkerSettings
from services.runner.workflows import WorkflowAcceptance

_SERVICE = "runner"
_THREADS_PER_RUN = 4
_MAX_THREADS = 64 * _THREADS_PER_RUN
_WATCH_SECONDS = 2.0
_TIDY_SECONDS = 30.0
_log = get_logger(_SERVICE)

OpenPlace: TypeAlias = Callable[[RunnerSettings], AbstractAsyncContextManager[Place]]


def create_app(settings: RunnerSettings, *, open_place: OpenPlace | None = None) -> web.Application:
    """The runner's API, and the worker beside it. Both live as long as the application runs.

    `open_place` is where agents are started if such execute runs; the cluster of the settings by default.
    """
    parts = _Parts(settings, open_place or _open_cluster)
    application = create_application(
        _SERVICE,
        routes=[*routes.routes(), *workflow_routes.routes()],
        internal=[] if settings.executor == "process" else [web.get(AGENT_PATH, get_attempt)],
        authenticate=parts.authenticate,
        checks={"database": parts.check_database, "bucket": parts.check_bucket, "queue": parts.check_queue},
        tags=routes.TAGS,
        limit=RequestLimit.of(settings),
        cors_origins=settings.cors_origins,
        drain=parts.drain,
    )
    application[routes.STOPPING] = parts.stopping
    application.cleanup_ctx.append(parts.running)
    application.on_shutdown.append(parts.close)
    return application


class _Parts:
    """What the application is made of, once it runs."""

    def __init__(self, settings: RunnerSettings, open_place: "OpenPlace") -> None:
        self._settings = settings
        self._open_place = open_place
        self.stopping = Stopping()

    async def authenticate(self, token: str) -> Principal | None:
        return await self._introspection(token)

    async def check_database(self) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute("SELECT 1")

    async def check_bucket(self) -> None:
        await asyncio.to_thread(self._objects.check)

    async def check_queue(self) -> None:
        await self._worker.check()

    async def drain(self) -> None:
        """Take no run from here on, and wait until each has ended or was given back: agents need us until then."""
        self.stopping.draining.set()
        await asyncio.wait((self._work,))

    async def close(self, _application: web.Application) -> None:
        """Let followers of logs go."""
        self.stopping.closing.set()

    async def running(self, application: web.Application) -> AsyncIterator[None]:
        """Everything, in the order in which it depends on each other."""
        settings = self._settings
        url = settings.database_url.get_secret_value()
        async with contextlib.AsyncExitStack() as stack:
            registry = await stack.enter_async_context(
                RegistryClient(settings.registry_url, settings.service_token.get_secret_value())
            )
            self._introspection = CachedIntrospection(registry, UnknownTokens.of(settings, application[REFUSALS]))
            standing = Standing(registry, seconds=settings.quarantine_seconds)
            pool = self._pool = await stack.enter_async_context(
                open_pool(
                    url,
                    size=settings.database_pool_size,
                    application_name="stowage-runner",
                )
            )
            application[METRICS].watch_pool(pool)
            keys = IdempotencyKeys(pool, "runner", keep_seconds=settings.idempotency_key_seconds)
            application[IDEMPOTENCY_KEYS] = keys
            await stack.enter_async_context(keys.forgetting())
            metrics = RunMetrics(application[METRICS].registry)
            objects = self._objects = ObjectStore(settings, connections=32)
            stack.callback(objects.close)
            news = await stack.enter_async_context(Notifications(url, "runner_journal").listening())
            leases = await stack.enter_async_context(Notifications(url, RUNS_CHANNEL).listening())
            workers = min(settings.concurrency * _THREADS_PER_RUN, _MAX_THREADS)
            threads = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="run"))
            journal = Journal(pool, "runner", news, guard=JOURNAL_GUARD)
            turns = Turns(pool)
            backlog = Backlog(pool, max_queued_runs=settings.max_queued_runs)
            lifecycle = Lifecycle(
                pool,
                journal,
                turns,
                metrics.finished,
                runner=f"{socket.gethostname()}/{os.getpid()}",
                max_parameters_bytes=settings.max_parameters_bytes,
            )
            logs = RunLogs(pool, journal, objects)
            watch = Watch(pool, leases, poll_seconds=min(_WATCH_SECONDS, settings.lease_seconds / 4))
            uploads = Uploads(pool, objects, threads)
            stock = Stock(pool, objects, _secret_providers(settings), standing, uploads)
            executor = await self._executor(application, stock, threads, stack)
            execution = Execution(
                executor,
                uploads,
                lifecycle,
                journal,
                logs,
                watch,
                self.stopping,
                metrics,
                max_log_bytes=settings.max_log_bytes,
            )
            worker = self._worker = Worker(
                WorkerSettings(url, settings.concurrency, settings.lease_seconds, settings.drain_seconds),
                execution.execute,
                self.stopping,
            )
            limit = settings.max_parameters_bytes
            application[routes.ACCEPTANCE] = Acceptance(
                pool, registry, standing, turns, backlog, max_parameters_bytes=limit
            )
            application[routes.CATALOGUE] = Catalogue(pool, objects)
            application[routes.LIFECYCLE] = lifecycle
            application[routes.LOGS] = logs
            application[workflow_routes.WORKFLOW_ACCEPTANCE] = WorkflowAcceptance(
                pool, registry, standing, turns, backlog, max_parameters_bytes=limit
            )
            await stack.enter_async_context(watch.watching())
            await stack.enter_async_context(metrics.watching_queue(pool))
            self._work = await stack.enter_async_context(_serving(worker, self.stopping))
            await stack.enter_async_context(_tidying(logs, uploads, turns, executor))
            keeping = keep_regularly(pool, objects, registry, settings.retention_days)
            await stack.enter_async_context(beside(keeping))
            yield

    async def _executor(
        self, application: web.Application, stock: Stock, threads: Executor, stack: contextlib.AsyncExitStack
    ) -> RunExecutor:
        settings = self._settings
        if settings.executor == "process":
            return await stack.enter_async_context(process_executor(settings, stock, threads))
        place = await stack.enter_async_context(self._open_place(settings))
        claims = application[CLAIMS] = Claims(
            heartbeat_seconds=settings.lease_seconds / 2,
            max_message_bytes=most_bytes_of_result(settings.max_result_bytes),
        )
        executor = remote_executor(settings, stock, threads, claims, place)
        await executor.sweep()
        return executor


def _open_cluster(settings: RunnerSettings) -> AbstractAsyncContextManager[Place]:
    # The client takes 66 MB and half a second: only where it is used.
    from services.runner.kubernetes.place import open_cluster

    return open_cluster(settings)


def _secret_providers(settings: RunnerSettings) -> list[SecretProvider]:
    """Whom to ask for secrets, the first one that has one wins. Another kind of provider is added here."""
    directory = settings.secrets_dir
    environment = EnvironmentSecrets(os.environ)
    return [environment] if directory is None else [DirectorySecrets(directory), environment]


@contextlib.asynccontextmanager
async def _serving(worker: Worker, stopping: Stopping) -> AsyncIterator["asyncio.Task[None]"]:
    """Execute runs until the context ends; then wait until each has ended or was given back."""
    work = asyncio.create_task(worker.serve())
    try:
        yield work
    finally:
        stopping.draining.set()
        await work


@contextlib.asynccontextmanager
async def _tidying(logs: RunLogs, uploads: Uploads, turns: Turns, executor: RunExecutor) -> AsyncIterator[None]:
    """Now and then clear up behind runners that are gone."""

    async def tidy() -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                await logs.archive_leftovers()
                await uploads.sweep()
                await logs.sweep()
                await turns.sweep()
                await executor.sweep()
            except Exception:  # noqa: BLE001  # the next time may do better
                _log.exception("not_tidied")

    async with beside(tidy()):
        yield
