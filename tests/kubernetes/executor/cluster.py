"""A namespace of the tests' own on a real cluster, and what somebody may do to the runs in it."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, ApiException, Configuration

from libs.common.version import VERSION

_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Where:
    """A cluster, and how the pods in it reach this machine."""

    kubeconfig: Path
    address: str
    image: str

    @classmethod
    async def given(cls) -> "Where | None":
        """As the environment says, or None where it says nothing of a cluster.

        `STOWAGE_TEST_KUBECONFIG` or `KUBECONFIG`; `STOWAGE_TEST_ADDRESS`, by default the one that this machine reaches
        the API server from; `STOWAGE_TEST_RUNNER_IMAGE`, which the cluster has.
        """
        path = os.environ.get("STOWAGE_TEST_KUBECONFIG") or os.environ.get("KUBECONFIG")
        if not path:
            return None
        image = os.environ.get("STOWAGE_TEST_RUNNER_IMAGE", f"localhost/stowage/runner:{VERSION}")
        address = os.environ.get("STOWAGE_TEST_ADDRESS") or _own_address(await _configuration(Path(path)))
        return cls(Path(path), address, image)


class Namespace:
    """One namespace, by plain requests to the API server."""

    def __init__(self, api: ApiClient, name: str) -> None:
        self.name = name
        self._api = api

    async def request(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Any:
        """The answer to a request; `path` may have `{ns}`."""
        headers = {"Accept": "application/json", "Content-Type": kind}
        answer, _, _ = await self._api.call_api(
            path.format(ns=self.name),
            method,
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            response_types_map=dict.fromkeys((200, 201, 202), "object"),
        )
        return answer

    async def pods(self) -> list[Any]:
        """The pods that are there."""
        items: list[Any] = (await self.request("GET", "/api/v1/namespaces/{ns}/pods"))["items"]
        return items

    async def jobs(self) -> list[Any]:
        """The Jobs that are there."""
        items: list[Any] = (await self.request("GET", "/apis/batch/v1/namespaces/{ns}/jobs"))["items"]
        return items

    async def pod_of(self, run_id: str, wanted: Callable[[Any], bool] = lambda _pod: True, seconds: float = 60) -> Any:
        """The pod of a run, once there is one that is as `wanted`."""
        async with asyncio.timeout(seconds):
            while True:
                for pod in await self.pods():
                    if pod["metadata"]["labels"].get("stowage.dev/run") == run_id and wanted(pod):
                        return pod
                await asyncio.sleep(_PAUSE_SECONDS)

    async def empty(self, seconds: float = 60) -> None:
        """Wait until no Job and no pod is left."""
        async with asyncio.timeout(seconds):
            while await self.jobs() or await self.pods():  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE_SECONDS)

    async def delete_pod(self, name: str) -> None:
        """As `kubectl delete pod` does."""
        await self.request("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{name}")

    async def delete_job(self, name: str) -> None:
        """As `kubectl delete job` does."""
        options = {"propagationPolicy": "Background"}
        await self.request("DELETE", f"/apis/batch/v1/namespaces/{{ns}}/jobs/{name}", options)

    async def evict(self, name: str) -> None:
        """As `kubectl drain` does, in the words that this cluster knows."""
        for version in ("v1", "v1beta1"):
            eviction = {"apiVersion": f"policy/{version}", "kind": "Eviction", "metadata": {"name": name}}
            try:
                await self.request("POST", f"/api/v1/namespaces/{{ns}}/pods/{name}/eviction", eviction)
            except ApiException as error:
                if error.status not in (400, 404) or version == "v1beta1":
                    raise
            else:
                return

    async def patch_job(self, name: str, spec: Any) -> None:
        """Change the specification of a Job."""
        path = f"/apis/batch/v1/namespaces/{{ns}}/jobs/{name}"
        await self.request("PATCH", path, {"spec": spec}, kind="application/merge-patch+json")

    async def token_with(self, rules: list[dict[str, Any]]) -> str:
        """A token of a service account that has these rights here, and no others."""
        subject = {"kind": "ServiceAccount", "name": "runner", "namespace": self.name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "runner"}
        rights = "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}"
        await self.create("/api/v1/namespaces/{ns}/serviceaccounts", {"metadata": {"name": "runner"}})
        await self.create(f"{rights}/roles", {"metadata": {"name": "runner"}, "rules": rules})
        binding = {"metadata": {"name": "runner"}, "roleRef": role, "subjects": [subject]}
        await self.create(f"{rights}/rolebindings", binding)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
        made = await self.request("POST", "/api/v1/namespaces/{ns}/serviceaccounts/runner/token", wanted)
        return str(made["status"]["token"])

    async def create(self, path: str, body: Any) -> None:
        """Make something."""
        await self.request("POST", path, body)


@contextlib.asynccontextmanager
async def fresh_namespace(where: Where) -> AsyncIterator[Namespace]:
    """An empty namespace with the service account of runs, gone afterwards."""
    async with ApiClient(await _configuration(where.kubeconfig)) as api:
        namespace = Namespace(api, f"stowage-exec-{secrets.token_hex(4)}")
        await namespace.create("/api/v1/namespaces", {"metadata": {"name": namespace.name}})
        try:
            account = {"metadata": {"name": "stowage-run"}, "automountServiceAccountToken": False}
            await namespace.create("/api/v1/namespaces/{ns}/serviceaccounts", account)
            yield namespace
        finally:
            await namespace.request("DELETE", "/api/v1/namespaces/{ns}")


async def _configuration(kubeconfig: Path) -> Configuration:
    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    return configuration


def _own_address(configuration: Configuration) -> str:
    server = urlsplit(configuration.host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname, server.port or 443))
        address: str = probe.getsockname()[0]
        return address


async def api_server_of(where: Where) -> str:
    """Its URL."""
    return str((await _configuration(where.kubeconfig)).host)


async def kubeconfig_through(where: Where, url: str, path: Path) -> Path:
    """A copy of the kubeconfig with another way to the API server."""
    text = where.kubeconfig.read_text()
    server = await api_server_of(where)
    assert server in text
    path.write_text(text.replace(server, url))
    return path


async def kubeconfig_for(where: Where, token: str, path: Path) -> Path:
    """A kubeconfig for somebody else."""
    cluster = {"server": await api_server_of(where), "insecure-skip-tls-verify": True}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "there", "cluster": cluster}],
        "users": [{"name": "somebody", "user": {"token": token}}],
        "contexts": [{"name": "there", "context": {"cluster": "there", "user": "somebody"}}],
        "current-context": "there",
    }
    path.write_text(json.dumps(content))  # which is YAML as well
    return path
