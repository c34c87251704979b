"""What the manifests give to whom: the restricted profile everywhere, rights, secrets, images."""

import tomllib
from typing import Any

import pytest
from pydantic import SecretStr

from libs.common.settings import ServiceSettings
from services.builder.settings import BuilderSettings
from services.registry.settings import RegistrySettings
from services.runner.settings import RunnerSettings
from tests.e2e.stack import REPOSITORY
from tests.kubernetes.kubectl import Cluster, elsewhere
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
)

_SETTINGS: tuple[type[ServiceSettings], ...] = (RegistrySettings, BuilderSettings, RunnerSettings)
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


@every_overlay
def test_every_namespace_enforces_the_restricted_profile(name: str) -> None:
    namespaces = of_kind(overlay(name), "Namespace")
    assert namespaces
    for namespace in namespaces:
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@every_overlay
def test_every_object_is_in_a_namespace_of_ours(name: str) -> None:
    manifests = overlay(name)
    ours = {namespace["metadata"]["name"] for namespace in of_kind(manifests, "Namespace")}
    for manifest in manifests:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] in ours, label(manifest)


@every_overlay
def test_every_pod_fits_the_restricted_profile(name: str) -> None:
    """The controls of the Pod Security Standards, and a root file system that is only read."""
    for owner, spec in pod_specs(overlay(name)):
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys(), owner
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, owner
        assert security["runAsUser"] > 0, owner
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert "sysctls" not in security, owner
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= _RESTRICTED_VOLUMES, owner
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, f"{owner}: {container['name']}"
            assert not any("hostPort" in port for port in container.get("ports", [])), owner


@every_overlay
def test_every_container_is_bounded(name: str) -> None:
    for owner, spec in pod_specs(overlay(name)):
        for container in containers(spec):
            resources = container["resources"]
            assert quantity(resources["limits"]["memory"]) >= quantity(resources["requests"]["memory"]) > 0, owner
            assert quantity(resources["requests"]["cpu"]) > 0, owner
        for volume in spec.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{owner}: {volume['name']}"


@every_overlay
def test_every_image_has_a_version_and_ours_that_of_the_project(name: str) -> None:
    for owner, spec in pod_specs(overlay(name)):
        for container in containers(spec):
            repository, _, tag = container["image"].rpartition(":")
            assert repository, f"{owner}: {container['image']} has no tag"
            assert tag != "latest", owner
            if repository in {f"stowage/{service}" for service in SERVICES}:
                assert tag == _VERSION, owner


@every_overlay
def test_the_setup_of_another_version_is_another_job(name: str) -> None:
    jobs = [job["metadata"]["name"] for job in of_kind(overlay(name), "Job")]
    assert jobs == [f"setup-{_VERSION.replace('.', '-')}"]


@every_overlay
def test_only_a_runner_that_makes_jobs_is_somebody_at_the_api_server(name: str) -> None:
    manifests = overlay(name)
    known = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in of_kind(manifests, "ServiceAccount")}
    with_token = []
    for deployment in [*of_kind(manifests, "Deployment"), *of_kind(manifests, "Job")]:
        spec = deployment["spec"]["template"]["spec"]
        account = spec.get("serviceAccountName")
        assert account is None or (deployment["metadata"]["namespace"], account) in known
        if spec.get("automountServiceAccountToken") is not False:
            with_token.append(label(deployment))
    assert with_token == (["Deployment/runner"] if name.endswith("-jobs") else [])
    for account in of_kind(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@every_overlay
def test_no_secret_is_among_the_settings(name: str) -> None:
    secret = {
        settings.variable(field)
        for settings in _SETTINGS
        for field, info in settings.model_fields.items()
        if info.annotation is SecretStr
    }
    assert len(secret) > 9
    manifests = overlay(name)
    for settings_map in of_kind(manifests, "ConfigMap"):
        assert not secret & settings_map.get("data", {}).keys(), label(settings_map)
    for owner, spec in pod_specs(manifests):
        for container in containers(spec):
            assert not secret & {variable["name"] for variable in container.get("env", [])}, owner


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.startswith("production")])
def test_production_brings_no_secrets_and_no_servers(name: str) -> None:
    assert of_kind(overlay(name), "Secret") == []
    assert [label(each) for each in of_kind(overlay(name), "StatefulSet")] == []
    assert {each["metadata"]["name"] for each in of_kind(overlay(name), "Deployment")} == set(SERVICES)


@every_overlay
def test_every_secret_that_is_read_is_known(name: str) -> None:
    """Whoever installs it makes four Secrets; what is in them stands in docs/kubernetes.md."""
    page = (REPOSITORY / "docs/kubernetes.md").read_text()
    made = {
        each["metadata"]["name"]: {*each.get("data", {}), *each.get("stringData", {})}
        for each in of_kind(overlay(name), "Secret")
    }
    for owner, spec in pod_specs(overlay(name)):
        mounted = {
            volume["name"]: volume["secret"]["secretName"] for volume in spec.get("volumes", []) if "secret" in volume
        }
        for key, secret in _secret_keys(spec, mounted):
            assert not made or key in made[secret], f"{owner} reads {key} of Secret {secret}"
            assert name.startswith("local") or f"`{key}`" in page, f"docs/kubernetes.md does not name {key}"


def _secret_keys(spec: dict[str, Any], mounted: dict[str, str]) -> list[tuple[str, str]]:
    """Which keys of which Secrets the containers of a pod read, by the paths that are in their settings."""
    found = []
    for container in containers(spec):
        places = {
            mount["mountPath"]: mounted[mount["name"]]
            for mount in container["volumeMounts"]
            if mount["name"] in mounted
        }
        texts = [str(variable.get("value", "")) for variable in container.get("env", [])] + container.get("command", [])
        for text in texts:
            path = text.rpartition("=")[2]
            directory, _, key = path.rpartition("/")
            if directory in places:
                found.append((key, places[directory]))
    return found


def test_the_runner_may_manage_jobs_of_runs_and_nothing_else(cluster: Cluster) -> None:
    kinds = ("Role", "RoleBinding", "ServiceAccount")
    manifests = [each for each in overlay("production-jobs") if each["kind"] in kinds]
    with cluster.namespace("services") as services, cluster.namespace("runs") as runs:
        cluster.apply(elsewhere(manifests, {"stowage": services, "stowage-runs": runs}))
        runner = f"system:serviceaccount:{services}:stowage-runner"
        assert _rights(cluster, runner, runs) == {
            "jobs.batch": {"create", "get", "list", "watch", "delete"},
            "pods": {"get", "list", "watch"},
        }
        for account, namespace in (
            (runner, services),
            (runner, "kube-system"),
            (f"system:serviceaccount:{runs}:stowage-run", runs),
            (f"system:serviceaccount:{services}:stowage-registry", runs),
            (f"system:serviceaccount:{services}:stowage-builder", runs),
        ):
            assert _rights(cluster, account, namespace) == {}, f"{account} in {namespace}"


def _rights(cluster: Cluster, account: str, namespace: str) -> dict[str, set[str]]:
    """What the API server lets an account do there, beside what it lets everybody do: ask for their own rights."""
    review = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace},
    }  # fmt: skip
    answer = cluster.create(review, "--as", account)
    rights: dict[str, set[str]] = {}
    for rule in answer["status"]["resourceRules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                if group not in ("authorization.k8s.io", "authentication.k8s.io"):
                    rights.setdefault(f"{resource}.{group}".rstrip("."), set()).update(rule["verbs"])
    return rights


def test_nobody_has_rights_beyond_the_namespace_of_runs() -> None:
    role = one(overlay("production-jobs"), "Role", "stowage-runner")
    assert role["metadata"]["namespace"] == "stowage-runs"
    assert of_kind(overlay("production-jobs"), "ClusterRole") == []
    assert of_kind(overlay("production-jobs"), "ClusterRoleBinding") == []
