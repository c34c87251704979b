"""Settings that files hold, as Kubernetes and Compose mount secrets."""

import subprocess
import sys
from pathlib import Path

import pytest

from libs.common.settings import SettingsError, read_variables
from services.registry.settings import RegistrySettings

_NEEDED = {
    "DATABASE_URL": "postgresql:///stowage",
    "S3_ENDPOINT": "http://127.0.0.1:1",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "variable",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which a registry could start."""
    for name, value in _NEEDED.items():
        monkeypatch.setenv(f"STOWAGE_REGISTRY_{name}", value)
    return monkeypatch


def _give_file(environment: pytest.MonkeyPatch, setting: str, path: Path) -> None:
    environment.delenv(f"STOWAGE_REGISTRY_{setting}", raising=False)
    environment.setenv(f"STOWAGE_REGISTRY_{setting}_FILE", str(path))


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"secret\n", "secret"), (b"secret", "secret"), (b"secret\r\n", "secret"), (b" secret \n\n", " secret \n")],
)
def test_file_holds_the_value_and_one_line_break(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes, value: str
) -> None:
    path = tmp_path / "secret-key"
    path.write_bytes(content)
    _give_file(environment, "S3_SECRET_KEY", path)
    assert RegistrySettings.from_environment().s3_secret_key.get_secret_value() == value


def test_files_hold_numbers_and_json_as_variables_do(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("7001\n")
    (tmp_path / "origins").write_text('["https://app.example"]\n')
    _give_file(environment, "PORT", tmp_path / "port")
    _give_file(environment, "CORS_ORIGINS", tmp_path / "origins")
    settings = RegistrySettings.from_environment()
    assert (settings.port, settings.cors_origins) == (7001, ["https://app.example"])


def test_setting_that_is_itself_a_path_keeps_its_meaning(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("STOWAGE_REGISTRY_AUDIT_KEY_FILE", str(tmp_path / "audit.pem"))
    assert RegistrySettings.from_environment().audit_key_file == tmp_path / "audit.pem"


def test_variable_and_file_together_are_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret-key").write_text("from-the-file")
    environment.setenv("STOWAGE_REGISTRY_S3_SECRET_KEY_FILE", str(tmp_path / "secret-key"))
    with pytest.raises(SettingsError, match=r"both STOWAGE_REGISTRY_S3_SECRET_KEY and .*_FILE are set") as caught:
        RegistrySettings.from_environment()
    assert "from-the-file" not in str(caught.value)


def test_file_that_is_not_there_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _give_file(environment, "S3_SECRET_KEY", tmp_path / "missing")
    with pytest.raises(SettingsError, match=r"S3_SECRET_KEY_FILE: .*/missing can't be read: No such file"):
        RegistrySettings.from_environment()


def test_file_that_is_not_text_is_refused_without_its_content(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe-binary")
    _give_file(environment, "S3_SECRET_KEY", tmp_path / "key")
    with pytest.raises(SettingsError, match=r"S3_SECRET_KEY_FILE: .*/key is not UTF-8$"):
        RegistrySettings.from_environment()


def test_file_of_a_mistyped_setting_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STOWAGE_REGISTRY_S3_SECRET_FILE", "/run/secrets/key")
    with pytest.raises(SettingsError, match="unknown settings STOWAGE_REGISTRY_S3_SECRET_FILE"):
        RegistrySettings.from_environment()


def test_list_that_is_no_json_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STOWAGE_REGISTRY_CORS_ORIGINS", "https://app.example")
    with pytest.raises(SettingsError, match="cors_origins"):
        RegistrySettings.from_environment()


def test_variables_that_are_not_set_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("2\n")
    assert read_variables(["A", "B", "C"], {"A": "1", "B_FILE": str(tmp_path / "b")}) == {"A": "1", "B": "2"}


def test_migration_says_that_its_file_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.migrate"],
        env={"STOWAGE_DATABASE_URL_FILE": str(tmp_path / "missing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "STOWAGE_DATABASE_URL_FILE" in done.stderr
    assert "Traceback" not in done.stderr
