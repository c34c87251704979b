"""The local overlay on a cluster: brought up, looked into, taken away."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.kubectl import MANIFESTS, Cluster, Manifest, find_kubectl, render

NAMESPACES = ("stowage", "stowage-runs")
SERVICES = ("registry", "builder", "runner")

_SCRIPTS = Path(__file__).parent / "scripts"
_DRIVER = Path(__file__).with_name("driver.yaml")
_TRUSTING = Path(__file__).with_name("trusting.yaml")
_PATIENCE_SECONDS = 300
_POLL_SECONDS = 1.0

_OF_REGISTRY = {"name": "registry", "namespace": "stowage", "behavior": "merge"}
_AUDIT_KEY_FILE = "/run/secrets/stowage/audit-key"

_SERVER_IMAGES = {"postgres": "STOWAGE_TEST_POSTGRES_IMAGE", "quay.io/minio/minio": "STOWAGE_TEST_S3_IMAGE"}
"""Images of the servers, and which variable names others where these can't be had."""


class NamespaceTaken(Exception):
    """There is an installation already, which tests must not touch."""


@dataclass(frozen=True)
class Pod:
    """A pod, as far as tests look."""

    name: str
    ready: bool
    ending: bool
    restarts: int


class Installation:
    """Stowage on a cluster. `directory` is for what is made on the way."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._audit_key = directory / "audit.pem"
        self.audit_public_key = _make_audit_key(self._audit_key)

    def run(self, *arguments: str, given: str | None = None) -> str:
        """kubectl in the namespace of the services."""
        return self._cluster.run("--namespace=stowage", *arguments, given=given)

    def apply(self, overlay: str) -> None:
        """Install an overlay, or go over to it, and wait until everything is as it says."""
        manifests = render(_adapted(overlay, self._directory, self._audit_key))
        self._cluster.apply(manifests)
        self._cluster.apply([_driver(manifests)])
        self.run("wait", "--for=condition=complete", "job", "--all", f"--timeout={_PATIENCE_SECONDS}s")
        for service in SERVICES:
            self.wait_rolled_out(service)
        self.run("wait", "--for=condition=ready", "pod/driver", f"--timeout={_PATIENCE_SECONDS}s")

    def wait_rolled_out(self, service: str) -> None:
        """Wait until a deployment is as it is wanted, and nothing of before is left."""
        self.run("rollout", "status", f"deployment/{service}", f"--timeout={_PATIENCE_SECONDS}s")
        until(lambda: all(pod.ready and not pod.ending for pod in self.pods(service)))

    def pods(self, service: str) -> list[Pod]:
        """The pods of a service."""
        found = self._cluster.get("pods", "--namespace=stowage", f"--selector=app.kubernetes.io/name={service}")
        return [_pod(item) for item in found["items"]]

    def evict(self, pod: str) -> None:
        """Ask for a pod to leave, as it is asked where its node is drained."""
        version = "policy/v1" if self._cluster.has("policy/v1", "PodDisruptionBudget") else "policy/v1beta1"
        eviction = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": pod, "namespace": "stowage"}}
        path = f"/api/v1/namespaces/stowage/pods/{pod}/eviction"
        self.run("create", "--raw", path, "--filename=-", given=json.dumps(eviction))

    def namespaces(self) -> set[str]:
        """The namespaces that the cluster has."""
        return {item["metadata"]["name"] for item in self._cluster.get("namespaces")["items"]}

    def of_runs(self, kind: str) -> list[Manifest]:
        """The Jobs or pods that runs have just now."""
        items: list[Manifest] = self._cluster.get(kind, "--namespace=stowage-runs")["items"]
        return items

    def stop(self) -> None:
        """Leave no pod of any service, as long as one likes."""
        for service in SERVICES:
            self.run("scale", f"deployment/{service}", "--replicas=0")
        until(lambda: not any(self.pods(service) for service in SERVICES))

    def start(self) -> None:
        """Have a pod of each service again."""
        for service in SERVICES:
            self.run("scale", f"deployment/{service}", "--replicas=1")
        for service in SERVICES:
            self.wait_rolled_out(service)

    def script(self, name: str, **given: Any) -> Any:
        """What a script of ours says at its end; it runs beside the services and asks them as their clients do."""
        command = ["exec", "driver", "--stdin", "--", "python", "-", json.dumps(given)]
        return json.loads(self.run(*command, given=_source(name)))

    @contextlib.contextmanager
    def load(self, per_second: float, *, begin_with: int) -> Iterator[dict[str, Any]]:
        """So many runs a second while the context is open, which is when `begin_with` runs were accepted.

        What came of them is in what is yielded, afterwards.
        """
        salt = secrets.token_hex(4)
        stop = f"/tmp/stop-{salt}"  # in the driver's own pod
        begun = f"/tmp/begun-{salt}"
        given = json.dumps(
            {"perSecond": per_second, "beginWith": begin_with, "salt": salt, "stop": stop, "begun": begun}
        )
        command = ["exec", "driver", "--stdin", "--", "python", "-", given]
        seen: dict[str, Any] = {}
        with self._started(command, _source("load")) as process:
            until(lambda: process.poll() is not None or self._is_there(begun))
            yield seen
            self.run("exec", "driver", "--", "touch", stop)
            output, errors = process.communicate(timeout=_PATIENCE_SECONDS)
        assert process.returncode == 0, errors
        seen |= json.loads(output)

    def _is_there(self, path: str) -> bool:
        """Whether the driver has a file."""
        return self.run("exec", "driver", "--", "ls", "/tmp").find(path.removeprefix("/tmp/")) >= 0

    @contextlib.contextmanager
    def _started(self, arguments: list[str], given: str) -> Iterator["subprocess.Popen[str]"]:
        program = find_kubectl()
        assert program is not None
        file = self._directory / "given"
        file.write_text(given)
        with file.open() as stdin:
            process = subprocess.Popen(
                [program, "--namespace=stowage", *arguments],
                env={**os.environ, "KUBECONFIG": str(self._cluster.kubeconfig)},
                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def installed(cluster: Cluster, directory: Path) -> Iterator[Installation]:
    """Namespaces to install in, which are taken away afterwards; NamespaceTaken where there are such already."""
    there = {item["metadata"]["name"] for item in cluster.get("namespaces")["items"]}
    if taken := there.intersection(NAMESPACES):
        raise NamespaceTaken(
            f"the cluster has {' and '.join(sorted(taken))} already; tests install there and delete it afterwards. "
            "Use another cluster, or remove what is there."
        )
    try:
        yield Installation(cluster, directory)
    finally:
        cluster.run("delete", "namespace", *NAMESPACES, "--ignore-not-found", f"--timeout={_PATIENCE_SECONDS}s")


def until(condition: Callable[[], bool]) -> None:
    """Wait for something, and fail where it takes minutes."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that within {_PATIENCE_SECONDS} seconds"
        time.sleep(_POLL_SECONDS)


def _driver(manifests: list[Manifest]) -> Manifest:
    """A pod for our scripts, of the registry's image, which has our clients."""
    deployments = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "Deployment"}
    (registry,) = deployments["registry"]["spec"]["template"]["spec"]["containers"]
    pod: Manifest = yaml.safe_load(_DRIVER.read_text())
    pod["spec"]["containers"][0]["image"] = registry["image"]
    return pod


def _source(script: str) -> str:
    return (_SCRIPTS / f"{script}.py").read_text()


def _make_audit_key(path: Path) -> str:
    """Make the key that signs the audit trail; its public half."""
    command = [sys.executable, "-m", "services.registry", "audit-key", "--key-file", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _adapted(overlay: str, directory: Path, audit_key: Path) -> Path:
    """The overlay as an overlay of somebody's own.

    It signs the audit trail; its servers may have other images; and commands of builds trust whom the tests trust.
    """
    place = directory / overlay
    place.mkdir(exist_ok=True)
    (place / "audit-key").write_bytes(audit_key.read_bytes())
    images = [(name, os.environ.get(variable, "").rpartition(":")) for name, variable in _SERVER_IMAGES.items()]
    layer: dict[str, Any] = {
        "resources": [os.path.relpath(MANIFESTS / "overlays" / overlay, place.resolve())],
        "images": [{"name": name, "newName": image, "newTag": tag} for name, (image, _, tag) in images if image],
        "secretGenerator": [{**_OF_REGISTRY, "files": ["audit-key"], "options": {"disableNameSuffixHash": True}}],
        "configMapGenerator": [{**_OF_REGISTRY, "literals": [f"STOWAGE_REGISTRY_AUDIT_KEY_FILE={_AUDIT_KEY_FILE}"]}],
    }
    if authorities := os.environ.get("NODE_EXTRA_CA_CERTS"):
        (place / "ca.crt").write_bytes(Path(authorities).read_bytes())
        layer["configMapGenerator"] += [{"name": "authorities", "namespace": "stowage", "files": ["ca.crt"]}]
        layer["patches"] = [{"patch": _TRUSTING.read_text()}]
    (place / "kustomization.yaml").write_text(json.dumps(layer))
    return place


def _pod(item: Manifest) -> Pod:
    status = item["status"]
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    return Pod(
        name=item["metadata"]["name"],
        ready=conditions.get("Ready") == "True",
        ending="deletionTimestamp" in item["metadata"],
        restarts=sum(container["restartCount"] for container in status.get("containerStatuses", [])),
    )
