"""A registry that serves on a free port, for the tests of the registry and of those who ask it."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from libs.common.audit import Origin
from libs.common.auth import new_token, parse_scopes
from libs.common.client import RegistryClient
from libs.common.database import open_pool
from libs.common.objects import ObjectStore
from libs.common.web import serve
from services.registry import tokens
from services.registry.app import create_app
from services.registry.settings import RegistrySettings
from tests.backend import Backend
from tests.ports import free_port

_TABLES = ("bundles", "versions", "revisions", "artifacts", "artifact_files")

ALL_SCOPES = (
    "bundles:read",
    "bundles:publish",
    "bundles:force",
    "runs:read",
    "runs:write",
    "builds:write",
    "audit:read",
)


@dataclass(frozen=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class RunningRegistry:
    """A registry that is up. `token` is an administrator's, `client` uses it."""

    url: str
    port: int
    token: str
    backend: Backend
    client: RegistryClient
    objects: ObjectStore
    session: aiohttp.ClientSession = field(repr=False)

    async def token_for(self, subject: str, *scopes: str) -> str:
        """A new token with these scopes; all but `admin` where none are given."""
        return await make_token(self.backend, subject, *(scopes or ALL_SCOPES))

    async def request(self, method: str, path: str, *, token: str | None = "", **options: Any) -> Answer:
        """Any request; with the administrator's token unless another is given, or None for none. A text is JSON."""
        headers = dict(options.pop("headers", {}))
        if isinstance(options.get("data"), str):
            headers.setdefault("Content-Type", "application/json")
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        options.setdefault("allow_redirects", False)
        async with self.session.request(method, self.url + path, headers=headers, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def publish(
        self,
        body: bytes | AsyncIterable[bytes],
        slug: str = "hello",
        version: str = "1.0.0",
        *,
        token: str = "",
        **query: str,
    ) -> Answer:
        """PUT a tarball."""
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        return await self.request(
            "PUT", f"/job-bundles/{slug}/versions/{version}", token=token, data=data, params=query
        )

    async def audit(self) -> list[dict[str, Any]]:
        """The whole audit trail but for tokens, oldest first."""
        found = await self.backend.fetch(
            "SELECT actor, action, subject, digest, previous_digest, reason, request_id, client, detail "
            "FROM audit.events WHERE action NOT LIKE 'token.%' ORDER BY id"
        )
        return [{**dict(row), "detail": json.loads(row["detail"])} for row in found]

    async def actions(self) -> list[str]:
        """What happened, oldest first."""
        return [event["action"] for event in await self.audit()]

    def keys(self, prefix: str = "") -> list[str]:
        """Every key in the bucket that begins with `prefix`."""
        return list(self.objects.list(prefix))

    async def settled(self, *, requests: int = 0) -> None:
        """Wait until so many requests are being handled; none counts also those whose client is gone."""
        async with asyncio.timeout(20):
            # Nobody tells when aiohttp begins with a request, or is done with it.
            while sum("_handle_request" in repr(task.get_coro()) for task in asyncio.all_tasks()) != requests:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def residue(self) -> dict[str, Any]:
        """What publications left: counts of rows, keys in the bucket, and uploads in flight, which it aborts."""
        counts = {}
        for table in _TABLES:
            (row,) = await self.backend.fetch(f"SELECT count(*) AS rows FROM registry.{table}")  # noqa: S608
            counts[table] = row["rows"]
        return {"rows": counts, "keys": self.keys(), "in_flight": self.objects.abort_uploads("")}


async def make_token(backend: Backend, subject: str, *scopes: str) -> str:
    """A token, directly in the database."""
    secret = new_token()
    async with open_pool(backend.database_url, size=2, application_name="test") as pool, pool.acquire() as connection:
        await tokens.register(connection, secret, subject, parse_scopes(scopes), Origin("test"))
    return secret


@contextlib.asynccontextmanager
async def running_registry(backend: Backend, **settings: Any) -> AsyncIterator[RunningRegistry]:
    """The real application, served in this process on a free port of the loopback interface."""
    port = free_port()
    chosen = RegistrySettings(**{**backend.settings, "port": port, **settings})
    token = await make_token(backend, "admin", "admin")
    objects = backend.objects()
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(create_app(chosen), service="registry", host="127.0.0.1", port=port, shutdown_seconds=5, stop=stop)
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session, RegistryClient(url, token) as client:
            await _until_alive(session, url, serving)
            yield RunningRegistry(url, port, token, backend, client, objects, session)
    finally:
        objects.close()
        stop.set()
        await serving


@contextlib.asynccontextmanager
async def registry_process(
    backend: Backend, *, module: str = "services.registry", **settings: object
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`python -m services.registry serve` in a process of its own, and its port.

    `module` is a program that stands in for the registry's.
    """
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, "serve"),
        env={
            **backend.environment("STOWAGE_REGISTRY_"),
            **{f"STOWAGE_REGISTRY_{name.upper()}": str(value) for name, value in settings.items()},
            "STOWAGE_REGISTRY_PORT": str(port),
            "PATH": os.environ["PATH"],
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                        if response.status == 200:
                            break
                if process.returncode is not None:
                    raise RuntimeError("the registry ended before it was ready")
                await asyncio.sleep(0.05)
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_alive(session: aiohttp.ClientSession, url: str, serving: "asyncio.Task[None]") -> None:
    while not serving.done():
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{url}/livez") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.01)
    serving.result()


NOTHING = {
    "rows": dict.fromkeys(_TABLES, 0),
    "keys": [],
    "in_flight": 0,
}
"""The residue of a publication that failed as it should."""
