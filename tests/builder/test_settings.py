"""Settings: what is mistyped or would give commands a secret is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from libs.common.settings import SettingsError
from services.builder.settings import BuilderSettings

_NEEDED = {
    "DATABASE_URL": "postgresql:///stowage",
    "S3_ENDPOINT": "http://127.0.0.1:1",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "secret",
    "SERVICE_TOKEN": "token",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which a builder could start."""
    for name, value in _NEEDED.items():
        monkeypatch.setenv(f"STOWAGE_BUILDER_{name}", value)
    return monkeypatch


def test_defaults_are_those_of_the_design(environment: pytest.MonkeyPatch) -> None:
    settings = BuilderSettings.from_environment()
    assert (settings.port, settings.concurrency, settings.command_seconds) == (7102, 2, 900)
    assert (settings.examples_dir / "environmental-observatory" / "bundles").is_dir()


def test_paths_are_the_same_ones_for_commands_that_run_elsewhere(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.chdir(tmp_path)
    environment.setenv("STOWAGE_BUILDER_NPM_CACHE", "npm")
    environment.setenv("STOWAGE_BUILDER_WORK_DIR", "work")
    settings = BuilderSettings.from_environment()
    assert (settings.npm_cache, settings.work_dir) == (tmp_path / "npm", tmp_path / "work")


def test_mistyped_setting_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STOWAGE_BUILDER_CONCURENCY", "4")
    with pytest.raises(SettingsError, match="STOWAGE_BUILDER_CONCURENCY"):
        BuilderSettings.from_environment()


def test_settings_of_services_can_not_be_given_to_commands(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STOWAGE_BUILDER_COMMAND_ENVIRONMENT", '{"stowage_registry_service_token": "x"}')
    with pytest.raises((SettingsError, ValidationError), match="stowage_registry_service_token"):
        BuilderSettings.from_environment()


def test_builder_that_lacks_settings_says_which_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.builder", "serve"], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode == 2
    assert "STOWAGE_BUILDER_SERVICE_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
