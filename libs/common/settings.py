"""What every service is told by its environment.

Each service reads variables with a prefix of its own (`STOWAGE_REGISTRY_…`), so that one environment can hold the
settings of several. A variable with the prefix that names no setting is refused: a typing error would otherwise
silently leave a default in force.

Each variable may be given as a file instead, as Kubernetes and Compose mount secrets:
`STOWAGE_REGISTRY_DATABASE_URL_FILE` is the path of a file with what `STOWAGE_REGISTRY_DATABASE_URL` would hold.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource
from pydantic_settings import SettingsError as UnreadableValue

_FROM_FILE = "_FILE"
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)


class SettingsError(Exception):
    """The environment does not describe a service that can start; the message says which variable and why."""


def read_variables(names: Iterable[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of the variables `names` that are set, by themselves or by a file that `<name>_FILE` names.

    A file holds the value as UTF-8; one line break at its end is not part of it. Raises SettingsError for a variable
    that is given in both ways, and for a file that can't be read.
    """
    given = os.environ if environment is None else environment
    values: dict[str, str] = {}
    for name in names:
        path = given.get(name + _FROM_FILE)
        if path is None:
            if name in given:
                values[name] = given[name]
        elif name in given:
            raise SettingsError(f"both {name} and {name}{_FROM_FILE} are set; unset one of them")
        else:
            values[name] = _read(name + _FROM_FILE, path)
    return values


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise SettingsError(f"{variable}: {path} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: {path} is not UTF-8") from None


class _Variables(EnvSettingsSource):
    """The variables of the environment, and those that files hold."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        given = {name.upper(): value for name, value in os.environ.items()}
        names = [f"{self.env_prefix}{name}".upper() for name in self.settings_cls.model_fields]
        return {name.lower(): value for name, value in read_variables(names, given).items()}


class ServiceSettings(BaseSettings):
    """Settings that all services have. Subclasses set `env_prefix` and their default port."""

    host: str = Field("127.0.0.1", description="Address to listen on; empty for all, of IPv4 and IPv6.")
    port: int = Field(ge=0, le=65535, description="Port to listen on.")
    database_url: SecretStr = Field(description="PostgreSQL connection string.")
    database_pool_size: int = Field(10, ge=2, le=200, description="Connections to PostgreSQL at most.")
    s3_endpoint: str = Field(description="URL of the S3 server.")
    s3_access_key: SecretStr = Field(description="Access key for the S3 server.")
    s3_secret_key: SecretStr = Field(description="Secret key for the S3 server.")
    s3_bucket: str = Field("stowage", description="The bucket.")
    s3_region: str = Field("us-east-1", description="Region of the bucket; self-hosted servers take any.")
    token_requests_per_second: float | None = Field(None, gt=0, description="Requests of one token; any without it.")
    token_request_burst: int = Field(100, ge=1, description="Requests of one token at once, where they are bounded.")
    unlimited_subjects: list[str] = Field(["builder", "runner"], description="Whose tokens no such limit is for.")
    unknown_tokens_per_second: float = Field(50.0, gt=0, description="How many tokens may be tried that nobody knows.")
    idempotency_key_seconds: float = Field(
        86_400.0, gt=0, description="How long answers to requests with a key are kept."
    )
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or lines for a person.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    cors_origins: list[str] = Field(
        default_factory=list, description="Origins whose pages may ask, as a JSON list; none by default."
    )
    shutdown_seconds: float = Field(20.0, gt=0, description="How long open requests may take to finish on SIGTERM.")

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        wrong = [origin for origin in value if not _ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: write scheme and host, and the port if need be: https://app.example")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, the strongest first; called by pydantic."""
        return init_settings, _Variables(settings_cls)

    @classmethod
    def variable(cls, setting: str) -> str:
        """The name of the variable that says what `setting` is."""
        return f"{cls.model_config['env_prefix']}{setting}".upper()

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings from the environment, or raise SettingsError naming each variable that is wrong."""
        prefix = cls.model_config["env_prefix"]
        known = {cls.variable(name) for name in cls.model_fields}
        accepted = known | {name + _FROM_FILE for name in known}
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in accepted
        )
        if unknown:
            raise SettingsError(f"unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls()
        except UnreadableValue as error:
            raise SettingsError(f"{error}: it must be JSON") from None
        except ValidationError as error:
            problems = "; ".join(
                f"{prefix}{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
                for item in error.errors()
            )
            raise SettingsError(problems) from None
