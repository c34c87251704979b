"""What the registry is told by its environment: variables that begin with STOWAGE_REGISTRY_."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.common.archive import ArchiveLimits
from libs.common.settings import ServiceSettings

_MIB = 1024 * 1024
_GIB = 1024 * _MIB


class RegistrySettings(ServiceSettings):
    """Settings of the registry."""

    model_config = SettingsConfigDict(env_prefix="STOWAGE_REGISTRY_")

    port: int = Field(7101, ge=0, le=65535, description="Port to listen on.")
    max_artifact_bytes: int = Field(4 * _GIB, ge=1, le=5 * _GIB, description="Largest tarball, compressed.")
    max_unpacked_bytes: int = Field(16 * _GIB, ge=1, description="Largest tarball, uncompressed.")
    max_entries: int = Field(200_000, ge=1, description="Most members of a tarball.")
    max_json_publish_bytes: int = Field(64 * _MIB, ge=1, description="Largest body of POST /job-bundles.")
    body_idle_seconds: float = Field(60.0, gt=0, description="How long a publisher may send nothing.")
    token_cache_seconds: float = Field(1.0, ge=0, le=2, description="How long a revoked token may still work.")
    download_url_seconds: int = Field(300, ge=1, le=604_800, description="How long a presigned download works.")
    upload_max_age_seconds: float = Field(86_400.0, ge=3600, description="Age at which an upload is swept as stale.")
    sweep_interval_seconds: float = Field(3600.0, gt=0, description="Time between sweeps of stale uploads.")

    @property
    def archive_limits(self) -> ArchiveLimits:
        """The bounds on one tarball."""
        return ArchiveLimits(
            max_compressed_bytes=self.max_artifact_bytes,
            max_unpacked_bytes=self.max_unpacked_bytes,
            max_entries=self.max_entries,
        )
