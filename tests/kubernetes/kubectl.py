"""kubectl, and the cluster that tests may use."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "infra" / "kubernetes"

Manifest = dict[str, Any]


class KubectlFailed(Exception):
    """kubectl ended with an error; the message is what it said."""


def find_kubectl() -> str | None:
    """The program: of the virtual environment, or on the path."""
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    return shutil.which("kubectl", path=places)


def kubectl(*arguments: str, given: str | None = None, kubeconfig: Path | None = None) -> str:
    """What kubectl prints; `given` is its standard input. Raises KubectlFailed."""
    program = find_kubectl()
    if program is None:
        raise KubectlFailed("kubectl is not installed")
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)}
    finished = subprocess.run(
        [program, *arguments], input=given, env=environment, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise KubectlFailed(f"kubectl {' '.join(arguments)}: {finished.stderr.strip() or finished.stdout.strip()}")
    return finished.stdout


def render(directory: Path) -> list[Manifest]:
    """The manifests of an overlay."""
    return list(yaml.safe_load_all(kubectl("kustomize", str(directory))))


@dataclass(frozen=True)
class Cluster:
    """A cluster that KUBECONFIG names."""

    kubeconfig: Path

    def run(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl prints."""
        return kubectl(*arguments, given=given, kubeconfig=self.kubeconfig)

    def get(self, *arguments: str) -> Manifest:
        """An object of the cluster, or a list of them."""
        found: Manifest = json.loads(self.run("get", *arguments, "--output=json"))
        return found

    def apply(self, manifests: list[Manifest], *options: str) -> None:
        """Create or change objects."""
        self.run("apply", "--filename=-", *options, given=yaml.safe_dump_all(manifests))

    def create(self, manifest: Manifest, *options: str) -> Manifest:
        """Create an object, or ask a question that is an object: what the API server makes of it."""
        made: Manifest = json.loads(
            self.run("create", "--filename=-", "--output=json", *options, given=yaml.safe_dump(manifest))
        )
        return made

    def has(self, api_version: str, kind: str) -> bool:
        """Whether the API server knows a kind in this version."""
        group = api_version.rpartition("/")[0]
        known = self.run("api-resources", f"--api-group={group}", "--no-headers")
        return any(line.split()[-1] == kind and api_version in line.split() for line in known.splitlines())

    @contextlib.contextmanager
    def namespace(self, purpose: str) -> Iterator[str]:
        """A namespace that is gone afterwards."""
        name = f"stowage-test-{purpose}-{secrets.token_hex(3)}"
        self.run("create", "namespace", name)
        try:
            yield name
        finally:
            self.run("delete", "namespace", name, "--wait=false")


def named_cluster() -> Cluster | None:
    """The cluster of STOWAGE_TEST_KUBECONFIG or else KUBECONFIG, if there is one of them."""
    named = os.environ.get("STOWAGE_TEST_KUBECONFIG") or os.environ.get("KUBECONFIG")
    return Cluster(Path(named)) if named else None


def elsewhere(manifests: list[Manifest], namespaces: dict[str, str]) -> list[Manifest]:
    """The same manifests in other namespaces, without the namespaces themselves."""
    moved: list[Manifest] = json.loads(json.dumps([each for each in manifests if each["kind"] != "Namespace"]))
    for manifest in moved:
        for place in (manifest["metadata"], *manifest.get("subjects", [])):
            if "namespace" in place:
                place["namespace"] = namespaces[place["namespace"]]
    return moved
