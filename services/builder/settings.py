"""What the builder is told by its environment: variables that begin with STOWAGE_BUILDER_."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings

_REPOSITORY = Path(__file__).resolve().parents[2]


class BuilderSettings(ServiceSettings):
    """Settings of the builder. The names of STOWAGE_BUILDER_COMMAND_ENVIRONMENT are given to commands as they are."""

    model_config = SettingsConfigDict(env_prefix="STOWAGE_BUILDER_")

    port: int = Field(7102, ge=0, le=65535, description="Port to listen on.")
    registry_url: str = Field("http://127.0.0.1:7101", description="URL of the registry.")
    service_token: SecretStr = Field(description="The builder's own token: may read, publish and force bundles.")
    examples_dir: Path = Field(_REPOSITORY / "examples", description="Where the examples are.")
    work_dir: Path | None = Field(None, description="Where workspaces are made: the system's temporary directory.")
    npm_cache: Path | None = Field(None, description="npm's cache, shared by builds; else each has its own.")
    concurrency: int = Field(2, ge=1, le=64, description="Builds side by side on this builder.")
    command_seconds: float = Field(900.0, gt=0, description="How long one command of a build may take.")
    grace_seconds: float = Field(5.0, ge=0, description="How long a command may take to end before it is killed.")
    command_environment: dict[str, str] = Field(
        default_factory=dict, description="More variables for the commands, as a JSON object; never secrets."
    )
    log_max_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="How long the log of a build may get.")
    retention_days: float | None = Field(None, gt=0, description="Days for which logs of builds are kept.")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often a builder says that it works on its imports.")
    lost_seconds: float = Field(30.0, gt=0, description="After how long without that its builder counts as lost.")
    recovery_seconds: float = Field(10.0, gt=0, description="How often to look for what other builders left.")
    keep_alive_seconds: float = Field(15.0, gt=0, description="How often a silent stream of events gets a comment.")

    @field_validator("examples_dir", "work_dir", "npm_cache")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Commands run elsewhere: to them a relative path would be another one."""
        return value.absolute() if value else None

    @field_validator("command_environment")
    @classmethod
    def _no_settings_of_services(cls, value: dict[str, str]) -> dict[str, str]:
        refused = sorted(name for name in value if name.upper().startswith("STOWAGE_"))
        if refused:
            raise ValueError(f"{', '.join(refused)}: settings of services are not for commands")
        return value
