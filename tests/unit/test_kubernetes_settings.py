"""Settings of the executor kubernetes: what no run could go with is refused before there is one."""

import json

import pytest

from libs.common.settings import SettingsError
from services.runner.settings import RunnerSettings

_NEEDED = {
    "DATABASE_URL": "postgresql:///stowage",
    "S3_ENDPOINT": "http://127.0.0.1:1",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "secret",
    "REGISTRY_URL": "http://127.0.0.1:1",
    "SERVICE_TOKEN": "token",
    "EXECUTOR": "kubernetes",
    "ADVERTISED_URL": "http://10.0.0.1:7103",
    "KUBERNETES_IMAGE": "stowage/runner:0.1.0",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which a runner could start."""
    for name, value in _NEEDED.items():
        monkeypatch.setenv(f"STOWAGE_RUNNER_{name}", value)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://10.0.0.1:7103", "http://10.0.0.1:7103"),
        ("https://runner.stowage.svc", "https://runner.stowage.svc"),
        ("https://runs.example/runner/", "https://runs.example/runner/"),
        ("http://[fd00::1]:7103", "http://[fd00::1]:7103"),
        ("http://fd00::1:7103", "http://[fd00::1]:7103"),
        ("http://fd00:10:244:1:2:3:4:5:7103/runner", "http://[fd00:10:244:1:2:3:4:5]:7103/runner"),
        ("http://fd00:10:244:1:2:3:4:5", "http://[fd00:10:244:1:2:3:4:5]"),
        ("http://fd00::1", "http://[fd00::1]"),
        ("http://::ffff:10.0.0.1:7103", "http://[::ffff:10.0.0.1]:7103"),
    ],
)
def test_an_address_of_ipv6_is_put_in_brackets(environment: pytest.MonkeyPatch, given: str, url: str) -> None:
    environment.setenv("STOWAGE_RUNNER_ADVERTISED_URL", given)
    assert RunnerSettings.from_environment().advertised_url == url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "10.0.0.1:7103",
        "ws://10.0.0.1:7103",
        "http://",
        "http://:7103",
        "http://10.0.0.1:none",
        "http://10.0.0.1:71030",
        "http://10.0.0.1:0",
        "http://[fd00::1:7103",
        "http://[none]:7103",
        "http://$(POD_IP):7103",
        "http://user@runner:7103",
        "http://runner:7103/?a=b",
        "http://runner:7103/#a",
    ],
)
def test_what_pods_could_not_ask_is_refused(environment: pytest.MonkeyPatch, given: str) -> None:
    environment.setenv("STOWAGE_RUNNER_ADVERTISED_URL", given)
    with pytest.raises(SettingsError, match=r"STOWAGE_RUNNER_ADVERTISED_URL: .*Write http:// or https://") as refused:
        RunnerSettings.from_environment()
    assert f"“{given}”" in str(refused.value)


def test_a_class_may_have_resources(environment: pytest.MonkeyPatch) -> None:
    classes = {"gpu": {"nodeSelector": {"pool": "gpu"}, "resources": {"nvidia.com/gpu": "1", "cpu": "2"}}}
    environment.setenv("STOWAGE_RUNNER_KUBERNETES_CLASSES", json.dumps(classes))
    environment.setenv("STOWAGE_RUNNER_KUBERNETES_DEFAULT_CLASS", "gpu")
    settings = RunnerSettings.from_environment()
    assert settings.kubernetes_classes["gpu"].resources == {"nvidia.com/gpu": "1", "cpu": "2"}
    assert settings.kubernetes_default_class == "gpu"


@pytest.mark.parametrize("name", ["memory", "ephemeral-storage"])
def test_what_follows_from_limits_of_jobs_is_no_resource_of_a_class(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv("STOWAGE_RUNNER_KUBERNETES_CLASSES", json.dumps({"large": {"resources": {name: "8Gi"}}}))
    with pytest.raises(SettingsError, match=f"leave out {name}: that follows from each job's limits"):
        RunnerSettings.from_environment()


@pytest.mark.parametrize(("classes", "known"), [({}, "it has none"), ({"gpu": {}, "arm": {}}, "arm, gpu")])
def test_a_default_class_that_there_is_not_is_refused(
    environment: pytest.MonkeyPatch, classes: dict[str, dict[str, str]], known: str
) -> None:
    environment.setenv("STOWAGE_RUNNER_KUBERNETES_CLASSES", json.dumps(classes))
    environment.setenv("STOWAGE_RUNNER_KUBERNETES_DEFAULT_CLASS", "large")
    with pytest.raises(SettingsError, match=f"DEFAULT_CLASS is large, and no class of KUBERNETES_CLASSES: {known}"):
        RunnerSettings.from_environment()
