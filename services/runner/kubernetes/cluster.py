"""The API server of a cluster, and of all its requests the few that runs need."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import aiohttp
from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, BatchV1Api, Configuration, CoreV1Api
from kubernetes_asyncio.config import ConfigException

from libs.common.settings import SettingsError

Kind = Literal["Job", "Pod"]

_REQUEST_SECONDS = 15
_WATCH_SECONDS = 240
_SILENT_SECONDS = _WATCH_SECONDS + 30
_PAGE = 500
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ClusterAway(Exception):
    """The API server can't be reached, or is overloaded. The request may have been done, or not.

    It may be made again after `retry_after_seconds`, where the server said so.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ClusterRefused(Exception):
    """The API server refuses a request, and will again."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class WatchExpired(Exception):
    """What is to be watched from has been forgotten: it is to be listed anew."""


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self.namespace = namespace
        # Typed for its own classes, which take long to make and to read: it takes and gives plain JSON as well.
        self._batch: Any = BatchV1Api(api)
        self._core: Any = CoreV1Api(api)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, kubeconfig: Path | None, namespace: str) -> "AsyncIterator[Cluster]":
        """With the credentials of a kubeconfig, or of the pod that this is. SettingsError where there are none."""
        configuration = Configuration()
        try:
            if kubeconfig is not None:
                await config.load_kube_config(
                    config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
                )
            else:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            raise SettingsError(
                f"there is no way to a cluster: {error} Set STOWAGE_RUNNER_KUBERNETES_CONFIG to a kubeconfig, or run "
                "in a pod with a service account."
            ) from None
        api = ApiClient(configuration)
        try:
            yield cls(api, namespace)
        finally:
            await api.close()

    async def create_job(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a Job, and how it is then; ClusterRefused with status 409 where one of this name is there."""
        return await self._do(self._batch.create_namespaced_job(self.namespace, dict(body), **_plain()))

    async def job(self, name: str) -> dict[str, Any] | None:
        """A Job, or None where there is none of that name."""
        try:
            return await self._do(self._batch.read_namespaced_job(name, self.namespace, **_plain()))
        except ClusterRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def delete_job(self, name: str, *, uid: str | None = None) -> None:
        """Delete a Job and its pods; with `uid` none but that. It is no error where it is gone already."""
        options = {
            "propagationPolicy": "Background",
            **({"preconditions": {"uid": uid}} if uid is not None else {}),
        }
        try:
            await self._do(self._batch.delete_namespaced_job(name, self.namespace, body=options, **_plain()))
        except ClusterRefused as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def own_pod(self, name: str) -> dict[str, Any] | None:
        """The pod of this name, where this process is in the namespace, and it is there."""
        if await asyncio.to_thread(_own_namespace) != self.namespace:
            return None
        try:
            return await self._do(self._core.read_namespaced_pod(name, self.namespace, **_plain()))
        except (ClusterAway, ClusterRefused):
            return None

    async def list(self, kind: Kind, selector: str) -> tuple[list[dict[str, Any]], str]:
        """Everything of a kind that has these labels, and the version to watch from."""
        items: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = await self._do(
                self._call(kind)(self.namespace, label_selector=selector, limit=_PAGE, **more, **_plain())
            )
            items += page["items"]
            if not page["metadata"].get("continue"):
                return items, page["metadata"]["resourceVersion"]
            more = {"_continue": page["metadata"]["continue"]}

    async def watch(self, kind: Kind, selector: str, version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What changes from a version on, as pairs of the type of a change and the object: for some minutes.

        WatchExpired where the version is too old, ClusterAway where the connection breaks.
        """
        answer = await self._open(
            self._call(kind)(
                self.namespace,
                label_selector=selector,
                resource_version=version,
                watch=True,
                allow_watch_bookmarks=True,
                timeout_seconds=_WATCH_SECONDS,
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_REQUEST_SECONDS, sock_read=_SILENT_SECONDS
                ),
            )
        )
        try:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error_of(event["object"].get("code", 500), event["object"], {})
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ClusterAway(f"{type(error).__name__}: {error}") from None
        finally:
            answer.close()

    def _call(self, kind: Kind) -> Any:
        return self._batch.list_namespaced_job if kind == "Job" else self._core.list_namespaced_pod

    async def _do(self, request: Any) -> dict[str, Any]:
        """The answer to a request, read to its end."""
        answer = await self._open(request)
        try:
            found: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ClusterAway(f"{type(error).__name__}: {error}") from None
        return found

    async def _open(self, request: Any) -> aiohttp.ClientResponse:
        try:
            answer: aiohttp.ClientResponse = await request
            if answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return answer
            text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterAway(f"{type(error).__name__}: {error}") from None
        try:
            said = json.loads(text)
        except ValueError:
            said = {"message": text[:500]}
        raise _error_of(answer.status, said, answer.headers)


def _own_namespace() -> str | None:
    """The namespace of the pod that this is, if it is one that has a service account."""
    try:
        return _OWN_NAMESPACE.read_text().strip()
    except OSError:
        return None


def _plain() -> dict[str, Any]:
    return {"_preload_content": False, "_request_timeout": _REQUEST_SECONDS}


def _error_of(status: int, said: Any, headers: Mapping[str, str]) -> Exception:
    """What an answer that is an error comes to; `said` is a Status of Kubernetes, or at least has a message."""
    reason, message = str(said.get("reason", "")), str(said.get("message", ""))[:2000]
    if status == HTTPStatus.GONE:
        return WatchExpired(message)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ClusterAway(f"it answered {status}: {message}", _seconds(headers.get("Retry-After")))
    return ClusterRefused(status, reason, message)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdecimal() else None
