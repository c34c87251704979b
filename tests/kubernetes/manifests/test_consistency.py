"""What the manifests say in several places agrees: settings, sizes, times, names."""

import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.common.settings import ServiceSettings
from services.builder.settings import BuilderSettings
from services.registry.settings import RegistrySettings
from services.runner.settings import RunnerSettings
from tests.kubernetes.kubectl import MANIFESTS, Manifest, render
from tests.kubernetes.manifests.rendered import (
    OVERLAYS,
    SERVICES,
    containers,
    label,
    of_kind,
    one,
    overlay,
    pod_specs,
    quantity,
    with_component,
)

_SETTINGS: dict[str, type[ServiceSettings]] = {
    "registry": RegistrySettings,
    "builder": BuilderSettings,
    "runner": RunnerSettings,
}
_DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "kubernetes.md"
_PRE_STOP_SECONDS = 5
_OWN_BYTES = 384 * 2**20
"""What a runner needs beside its jobs."""

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def _container(manifests: list[Manifest], service: str) -> dict[str, Any]:
    spec = one(manifests, "Deployment", service)["spec"]["template"]["spec"]
    (container,) = (each for each in spec["containers"] if each["name"] == service)
    return {**container, "pod": spec}


def _environment(manifests: list[Manifest], container: dict[str, Any], secrets: Path) -> dict[str, str]:
    """What Kubernetes gives to a container, with files of secrets below `secrets`."""
    maps = {each["metadata"]["name"]: each.get("data", {}) for each in of_kind(manifests, "ConfigMap")}
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environment |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        if "value" in variable:
            value = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], variable["value"])
        elif "fieldRef" in variable["valueFrom"]:
            value = "10.0.0.1"
        else:
            reference = variable["valueFrom"]["configMapKeyRef"]
            value = maps[reference["name"]][reference["key"]]
        environment[variable["name"]] = value
    for key, value in environment.items():
        if value.startswith("/run/secrets/stowage/"):
            file = secrets / Path(value).name
            file.write_text("secret\n")
            environment[key] = str(file)
    return environment


def _settings(manifests: list[Manifest], service: str, directory: Path, patch: pytest.MonkeyPatch) -> ServiceSettings:
    """The settings as the service itself reads them; SettingsError where it would not start with them."""
    with patch.context() as context:
        for key, value in _environment(manifests, _container(manifests, service), directory).items():
            context.setenv(key, value)
        return _SETTINGS[service].from_environment()


@every_overlay
@pytest.mark.parametrize("service", SERVICES)
def test_services_take_the_settings_that_they_are_given(
    name: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(overlay(name), service, tmp_path, monkeypatch)
    assert settings.database_url.get_secret_value() == "secret"
    assert settings.s3_endpoint.startswith("http")


@every_overlay
@pytest.mark.parametrize("service", SERVICES)
def test_pods_are_given_the_time_that_their_service_takes_to_stop(
    name: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(overlay(name), service, tmp_path, monkeypatch)
    container = _container(overlay(name), service)
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(_PRE_STOP_SECONDS)]
    stopping = settings.leaving_seconds if isinstance(settings, RunnerSettings) else settings.shutdown_seconds
    seconds = _PRE_STOP_SECONDS + settings.shutdown_seconds + stopping
    assert container["pod"]["terminationGracePeriodSeconds"] >= seconds


def _check_runs_have_room(manifests: list[Manifest], directory: Path, patch: pytest.MonkeyPatch) -> None:
    settings = _settings(manifests, "runner", directory, patch)
    assert isinstance(settings, RunnerSettings)
    container = _container(manifests, "runner")
    (scratch,) = (volume["emptyDir"] for volume in container["pod"]["volumes"] if volume["name"] == "scratch")
    scratch_bytes = quantity(scratch["sizeLimit"])
    assert scratch_bytes > settings.concurrency * settings.disk_bytes
    memory_bytes: float = (settings.total_memory_bytes or settings.concurrency * settings.memory_bytes) + _OWN_BYTES
    if scratch.get("medium") == "Memory":
        memory_bytes += scratch_bytes
    assert quantity(container["resources"]["limits"]["memory"]) >= memory_bytes


@pytest.mark.parametrize("name", [name for name in OVERLAYS if not name.endswith("-jobs")])
def test_what_runs_may_take_has_room_in_the_pod(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_runs_have_room(overlay(name), tmp_path, monkeypatch)


def test_what_runs_may_take_has_room_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = with_component("production", "memory-scratch", tmp_path)
    _check_runs_have_room(manifests, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.endswith("-jobs")])
def test_runs_have_the_image_of_their_runner(name: str, tmp_path: Path) -> None:
    container = _container(overlay(name), "runner")
    environment = _environment(overlay(name), container, tmp_path)
    assert environment["STOWAGE_RUNNER_KUBERNETES_IMAGE"] == container["image"]
    assert environment["STOWAGE_RUNNER_ADVERTISED_URL"] == "http://10.0.0.1:7103"


def _documented(directory: Path, *keys: str) -> dict[str, Any]:
    """A layer of the blocks of docs/kubernetes.md that have such texts in them, with the manifests beside it."""
    layer: dict[str, Any] = {}
    blocks = re.findall(r"```yaml\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    for key in keys:
        (block,) = (block for block in blocks if key in block)
        here = os.path.relpath(MANIFESTS, directory.resolve())
        text = re.sub(r"https://git\.example/stowage//infra/kubernetes(\S*)\?ref=\S+", rf"{here}\1", block)
        for name, values in yaml.safe_load(textwrap.dedent(text)).items():
            layer[name] = layer.get(name, []) + values
    return layer


def test_layers_of_ones_own_are_as_they_are_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with images and places, one above for runs as Jobs, and one more for settings of such runs."""
    layers = {
        "mine": ("overlays/production", "imagePullSecrets"),
        "jobs": ("components/run-jobs", "169.254.20.10"),
        "settings": ("KUBERNETES_DEFAULT_CLASS", "imagePullSecrets"),
    }
    below = None
    for name, keys in layers.items():
        directory = tmp_path / name
        directory.mkdir()
        layer = _documented(directory, *keys)
        if below is not None:
            layer["resources"] = [f"../{below}"]
        (directory / "kustomization.yaml").write_text(json.dumps(layer))
        below = name
    manifests = render(tmp_path / "settings")
    images = {
        container["image"].rpartition(":")[0] for _, spec in pod_specs(manifests) for container in containers(spec)
    }
    assert images == {f"registry.example/stowage/{service}" for service in SERVICES}
    environment = _environment(manifests, _container(manifests, "runner"), tmp_path)
    assert environment["STOWAGE_RUNNER_KUBERNETES_IMAGE"] == _container(manifests, "runner")["image"]
    assert environment["STOWAGE_RUNNER_S3_ENDPOINT"] == "https://s3.example.com"
    assert of_kind(manifests, "HorizontalPodAutoscaler") == []
    accounts = of_kind(manifests, "ServiceAccount")
    assert {each["metadata"]["namespace"] for each in accounts} == {"stowage", "stowage-runs"}
    assert all(each["imagePullSecrets"] for each in accounts)
    assert all(spec["serviceAccountName"] != "default" for _, spec in pod_specs(manifests))
    settings = _settings(manifests, "runner", tmp_path, monkeypatch)
    assert isinstance(settings, RunnerSettings)
    assert settings.kubernetes_default_class == "amd64"
    assert all(spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"} for _, spec in pod_specs(manifests))
    to_bucket = one(manifests, "NetworkPolicy", "runs-to-bucket")["spec"]["egress"]
    assert to_bucket == [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 443}]}]
    ports = [
        port["port"] for rule in one(manifests, "NetworkPolicy", "runs")["spec"]["egress"] for port in rule["ports"]
    ]
    assert ports == [7103, 53, 53, 53, 53, 5353, 5353]


@every_overlay
@pytest.mark.parametrize("service", SERVICES)
def test_services_are_asked_how_they_are(name: str, service: str) -> None:
    container = _container(overlay(name), service)
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


@every_overlay
@pytest.mark.parametrize("service", SERVICES)
def test_services_wait_for_the_schema(name: str, service: str) -> None:
    spec = _container(overlay(name), service)["pod"]
    assert [each["command"][:4] for each in spec["initContainers"]] == [["python", "-m", "infra.migrate", "--wait"]]
    assert spec["initContainers"][0]["image"] == _container(overlay(name), "registry")["image"]


@every_overlay
def test_selectors_find_what_they_are_for(name: str) -> None:
    """Of one owner each, except where a policy is for all of a namespace or names several."""
    manifests = overlay(name)
    pods = {
        (each["metadata"]["namespace"], label(each)): each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if "template" in each.get("spec", {})
    }
    ports = {
        owner: {port["name"] for c in containers(spec) for port in c.get("ports", [])}
        for owner, spec in pod_specs(manifests)
    }
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                selector = spec["selector"]
            case "Deployment" | "StatefulSet" | "PodDisruptionBudget":
                selector = spec["selector"]["matchLabels"]
            case _:
                continue
        found = [
            owner
            for (namespace, owner), labels in pods.items()
            if namespace == manifest["metadata"]["namespace"] and selector.items() <= labels.items()
        ]
        assert len(found) == 1, f"{label(manifest)} finds {found}"
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports[found[0]], label(manifest)


@every_overlay
def test_an_autoscaler_and_a_manifest_do_not_both_say_how_many(name: str) -> None:
    manifests = overlay(name)
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert "replicas" not in one(manifests, target["kind"], target["name"])["spec"]


@every_overlay
def test_every_network_policy_is_for_pods_that_are_there(name: str) -> None:
    manifests = overlay(name)
    names = {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for each in manifests
        if "template" in each.get("spec", {})
    }
    names.add("stowage-run")  # made by the runner
    for policy in of_kind(manifests, "NetworkPolicy"):
        assert set(_names_of(policy["spec"])) <= names, label(policy)


def _names_of(found: Any) -> list[str]:
    """Every value of the label app.kubernetes.io/name in a policy."""
    if isinstance(found, list):
        return [name for each in found for name in _names_of(each)]
    if not isinstance(found, dict):
        return []
    if found.get("key") == "app.kubernetes.io/name":
        return list(found["values"])
    names = [found["app.kubernetes.io/name"]] if "app.kubernetes.io/name" in found else []
    return names + [name for each in found.values() for name in _names_of(each)]
