"""The rendered overlays, and ways through what is in them."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kubernetes.kubectl import MANIFESTS, Manifest, render

OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
SERVICES = ("registry", "builder", "runner")

_UNITS = {"": 1, "m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@functools.cache
def overlay(name: str) -> list[Manifest]:
    """The manifests of an overlay; they are not to be changed."""
    return render(MANIFESTS / "overlays" / name)


def with_component(name: str, component: str, directory: Path) -> list[Manifest]:
    """An overlay with one more component, as an overlay of somebody's own, which is made in `directory`."""
    base = os.path.relpath(MANIFESTS, directory.resolve())  # kustomize takes no absolute paths
    (directory / "kustomization.yaml").write_text(
        f"resources: [{base}/overlays/{name}]\ncomponents: [{base}/components/{component}]\n"
    )
    return render(directory)


def label(manifest: Manifest) -> str:
    """A name of a manifest for people."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """All of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The only one of that kind and name."""
    (found,) = (each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name)
    return found


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each specification of pods, by the name of whoever makes them."""
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield label(manifest), manifest["spec"]["template"]["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every container of a pod, also those that only begin it."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def quantity(text: str | int) -> float:
    """A quantity as Kubernetes writes it, as a number: bytes of memory, or processors."""
    digits = str(text).rstrip("KMGim")
    return float(digits) * _UNITS[str(text)[len(digits) :]]
