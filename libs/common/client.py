"""Clients of the three services, for the services themselves, the demo and the tests."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

from libs.common import models
from libs.common.errors import StowageError, Unavailable

Shape = TypeVar("Shape", bound=models.Resource)
Body = bytes | AsyncIterable[bytes]

_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_STREAMING = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=300)


class ServiceError(StowageError):
    """A service answered with a problem document: `status`, `kind` and `details` are its."""

    kind = "service-error"

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        details = {key: value for key, value in document.items() if key not in ("detail", "status", "type", "title")}
        kind = str(document.get("type", "")).rpartition(":")[2] or "service-error"
        super().__init__(str(document.get("detail", f"the service answered {status}")), kind=kind, **details)
        self.status = status


class ServiceClient:
    """A service at a URL, with a token. Use it as an async context manager."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._token}"}, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, whose status is below 400; ServiceError or Unavailable otherwise."""
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        try:
            async with self._session.request(method, self.url + path, **options) as response:
                if response.status >= 400:
                    raise ServiceError(response.status, await _document(response))
                yield response
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise Unavailable(f"{self.url} can't be reached: {type(error).__name__}") from error

    async def get(self, path: str, shape: type[Shape], **parameters: str | int) -> Shape:
        """GET a resource."""
        async with self.request("GET", path, params=parameters) as response:
            return shape.model_validate_json(await response.read())

    async def send(self, method: str, path: str, body: models.Request, shape: type[Shape], **options: Any) -> Shape:
        """Send a JSON body and read the resource that comes back."""
        async with self.request(
            method,
            path,
            data=body.model_dump_json(by_alias=True, exclude_unset=True),
            headers={"Content-Type": "application/json"},
            **options,
        ) as response:
            return shape.model_validate_json(await response.read())

    async def lines(self, path: str, **parameters: str | int) -> AsyncIterator[str]:
        """The lines of a text answer as they come, without their ends."""
        async with self.request("GET", path, params=parameters, timeout=_STREAMING) as response:
            async for line in response.content:
                yield line.decode("utf-8", "replace").rstrip("\n")


class RegistryClient(ServiceClient):
    """The registry."""

    async def introspect(self, token: str) -> models.Introspection:
        """Whom a token speaks for."""
        return await self.send(
            "POST", "/tokens/introspect", models.IntrospectionRequest(token=token), models.Introspection
        )

    async def publish(
        self,
        slug: str,
        version: str,
        body: Body,
        *,
        force: bool = False,
        reason: str | None = None,
        expected_digest: str | None = None,
        build_id: str | None = None,
        digest: str | None = None,
        size: int | None = None,
    ) -> tuple[int, models.Version]:
        """Publish a tarball: the status (201 new, 200 replaced or identical) and the version as it is now.

        With its `digest` it is checked against that, and stored without a copy; with its `size` in bytes as well it
        streams through to the bucket.
        """
        wanted = {"reason": reason, "expectedDigest": expected_digest, "buildId": build_id, "digest": digest}
        parameters = {key: value for key, value in wanted.items() if value is not None}
        if force:
            parameters["force"] = "true"
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        async with self.request(
            "PUT",
            f"/job-bundles/{quote(slug, safe='')}/versions/{quote(version, safe='')}",
            params=parameters,
            data=body,
            headers=headers,
            timeout=_STREAMING,
        ) as response:
            return response.status, models.Version.model_validate_json(await response.read())

    async def roll_back(self, slug: str, version: str, request: models.RollbackRequest) -> models.Version:
        """Point a version at an artifact that it had: the version as it is now."""
        path = f"/job-bundles/{quote(slug, safe='')}/versions/{quote(version, safe='')}/rollback"
        return await self.send("POST", path, request, models.Version)

    async def diff(
        self, slug: str, before: str, after: str, *, text: bool = False, cursor: str | None = None, limit: int = 50
    ) -> models.ArtifactDiff:
        """A page of what differs between `latest`, versions, revisions (`1.0.0@r2`) or digests of a bundle."""
        parameters: dict[str, str | int] = {"from": before, "to": after, "limit": limit}
        if text:
            parameters["text"] = "true"
        if cursor is not None:
            parameters["cursor"] = cursor
        return await self.get(f"/job-bundles/{quote(slug, safe='')}/diff", models.ArtifactDiff, **parameters)

    async def resolve(self, slug: str, reference: str) -> models.Resolution:
        """What `latest`, a version or a digest of a bundle means right now."""
        return await self.get(f"/job-bundles/{quote(slug, safe='')}/resolve", models.Resolution, reference=reference)

    async def note_uses(self, digests: list[str]) -> list[str]:
        """Say that runs use these artifacts, so that they are kept; those of them that can't be had any more."""
        noted = await self.send(
            "POST", "/artifacts/uses", models.ArtifactUses(digests=digests), models.ArtifactUsesNoted
        )
        return noted.unavailable

    async def job(self, slug: str) -> models.Job:
        """A job definition."""
        return await self.get(f"/jobs/{quote(slug, safe='')}", models.Job)

    async def workflow(self, slug: str) -> models.Workflow:
        """A workflow definition."""
        return await self.get(f"/workflows/{quote(slug, safe='')}", models.Workflow)

    async def put_job(self, slug: str, definition: models.JobDefinition) -> models.Job:
        """Create or update a job."""
        return await self.send("PUT", f"/jobs/{quote(slug, safe='')}", definition, models.Job)

    async def put_workflow(self, slug: str, definition: models.WorkflowDefinition) -> models.Workflow:
        """Create or update a workflow."""
        return await self.send("PUT", f"/workflows/{quote(slug, safe='')}", definition, models.Workflow)


class BuilderClient(ServiceClient):
    """The builder."""

    async def start_import(self, example: str, bundles: list[str] | None = None) -> models.Import:
        """Ask for an import; it goes on by itself."""
        request = models.ImportRequest(example=example, bundles=bundles)
        return await self.send("POST", "/examples/import", request, models.Import)

    async def import_(self, import_id: str) -> models.Import:
        """An import and its builds."""
        return await self.get(f"/imports/{quote(import_id, safe='')}", models.Import)

    async def import_events(self, import_id: str, *, after: int = 0) -> AsyncIterator[tuple[int, str, Any]]:
        """The events of an import as they happen, until it ends: number, kind, data."""
        async with self.request(
            "GET",
            f"/imports/{quote(import_id, safe='')}/events",
            headers={"Last-Event-ID": str(after), "Accept": "text/event-stream"},
            timeout=_STREAMING,
        ) as response:
            number, kind, data = 0, "message", ""
            async for raw in response.content:
                field, _, value = raw.decode().rstrip("\r\n").partition(": ")
                match field:
                    case "id":
                        number = int(value)
                    case "event":
                        kind = value
                    case "data":
                        data += value
                    case "" if data:
                        yield number, kind, json.loads(data)
                        kind, data = "message", ""


class RunnerClient(ServiceClient):
    """The runner."""

    async def start_run(self, request: models.RunRequest) -> models.Run:
        """Ask for a run; it is pinned to a digest and queued when this returns."""
        return await self.send("POST", "/runs", request, models.Run)

    async def run(self, run_id: str) -> models.Run:
        """A run."""
        return await self.get(f"/runs/{quote(run_id, safe='')}", models.Run)

    async def cancel(self, run_id: str) -> None:
        """Ask a run to end."""
        async with self.request("POST", f"/runs/{quote(run_id, safe='')}/cancel"):
            pass

    async def outputs(self, run_id: str) -> list[models.Output]:
        """Every output of a run."""
        found: list[models.Output] = []
        cursor = ""
        while True:
            options: dict[str, str | int] = {"limit": 500, **({"cursor": cursor} if cursor else {})}
            page = await self.get(f"/runs/{quote(run_id, safe='')}/outputs", models.Page[models.Output], **options)
            found += page.items
            if page.next is None:
                return found
            cursor = page.next

    async def output(self, run_id: str, path: str) -> bytes:
        """The bytes of one output, which is held in memory."""
        async with self.request("GET", f"/runs/{quote(run_id, safe='')}/outputs/{quote(path)}") as response:
            return await response.read()

    async def start_workflow(self, slug: str, parameters: dict[str, Any]) -> models.WorkflowRun:
        """Start a workflow."""
        request = models.WorkflowRunRequest(parameters=parameters)
        return await self.send("POST", f"/workflows/{quote(slug, safe='')}/runs", request, models.WorkflowRun)

    async def workflow_run(self, identifier: str) -> models.WorkflowRun:
        """A workflow run and its steps."""
        return await self.get(f"/workflow-runs/{quote(identifier, safe='')}", models.WorkflowRun)


async def _document(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    try:
        document = json.loads(await response.read())
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
