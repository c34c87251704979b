"""What the registry is told by its environment: variables that begin with STOWAGE_REGISTRY_."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.archive import ArchiveLimits
from libs.common.errors import InvalidRequest
from libs.common.settings import ServiceSettings
from services.registry.gate import check_patterns
from services.registry.notes import PublicKey
from services.registry.store.collection import Retention

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_RUNNERS = ArchiveLimits()
"""What runners unpack: the registry may be stricter, so that what was published can be run."""

_SETTINGS_OF_LIMITS = {"max_compressed_bytes": "max_artifact_bytes", "max_ratio": "max_compression_ratio"}


class RegistrySettings(ServiceSettings):
    """Settings of the registry."""

    model_config = SettingsConfigDict(env_prefix="STOWAGE_REGISTRY_")

    port: int = Field(7101, ge=0, le=65535, description="Port to listen on.")
    max_artifact_bytes: int = Field(4 * _GIB, ge=1, le=5 * _GIB, description="Largest tarball, compressed.")
    max_unpacked_bytes: int = Field(16 * _GIB, ge=1, description="Largest tarball, uncompressed.")
    max_entries: int = Field(200_000, ge=1, description="Most members of a tarball.")
    max_json_publish_bytes: int = Field(64 * _MIB, ge=1, description="Largest body of POST /job-bundles.")
    max_compression_ratio: int = Field(
        _RUNNERS.max_ratio, ge=1, le=_RUNNERS.max_ratio, description="Uncompressed bytes for one of a tarball."
    )
    max_path_bytes: int = Field(
        _RUNNERS.max_path_bytes, ge=1, le=_RUNNERS.max_path_bytes, description="Longest path of a member."
    )
    max_path_depth: int = Field(
        _RUNNERS.max_path_depth,
        ge=1,
        le=_RUNNERS.max_path_depth,
        description="Names in the path of a member.",
    )
    max_total_path_bytes: int = Field(
        _RUNNERS.max_total_path_bytes, ge=1, le=_RUNNERS.max_total_path_bytes, description="All paths together."
    )
    max_manifest_bytes: int = Field(
        _RUNNERS.max_manifest_bytes, ge=1, le=4 * _MIB, description="Largest manifest.json."
    )
    token_uploads: int | None = Field(None, ge=1, description="Uploads of one token at a time; any without it.")
    token_upload_bytes_per_hour: int | None = Field(None, ge=1, description="Bytes that one token may upload.")
    token_upload_bytes_per_day: int | None = Field(None, ge=1, description="Bytes that one token may upload.")
    allowed_platforms: str = Field(
        "linux", description="Platforms that bundles may be published for: patterns with commas between, or any."
    )
    diff_file_bytes: int = Field(_MIB // 4, ge=0, le=16 * _MIB, description="Largest text file compared by lines.")
    diff_answer_bytes: int = Field(4 * _MIB, ge=0, le=64 * _MIB, description="Text files compared in one answer.")
    body_idle_seconds: float = Field(60.0, gt=0, description="How long a publisher may send nothing.")
    token_cache_seconds: float = Field(1.0, ge=0, le=2, description="How long a revoked token may still work.")
    token_use_interval_seconds: float = Field(60.0, gt=0, description="How often the last use of tokens is noted.")
    download_url_seconds: int = Field(300, ge=1, le=604_800, description="How long a presigned download works.")
    upload_max_age_seconds: float = Field(86_400.0, ge=3600, description="Age at which an upload is swept as stale.")
    sweep_interval_seconds: float = Field(3600.0, gt=0, description="Time between sweeps of stale uploads.")

    audit_key_file: Path | None = Field(None, description="Ed25519 key in PEM that signs the audit trail.")
    audit_earlier_keys: list[str] = Field(
        default_factory=list, description="Public keys that signed the audit trail before, as a JSON list."
    )
    audit_origin: str = Field("", description="Name of the audit trail in what is signed; by default stowage/BUCKET.")
    audit_seal_seconds: float = Field(1.0, gt=0, le=3600, description="Time between sealings of audit events.")
    audit_checkpoint_seconds: float = Field(30.0, gt=0, le=86_400, description="Least time between checkpoints.")

    keep_revisions: int | None = Field(
        None, ge=1, description="Revisions of each version whose artifacts are kept, the current one among them."
    )
    keep_used_days: float = Field(90.0, ge=1, description="Days for which an artifact is kept that a run used.")
    gc_grace_seconds: float | None = Field(None, description="How long what nothing keeps is left as it is.")
    gc_interval_seconds: float = Field(86_400.0, gt=0, description="Time between collections.")

    scrub_interval_seconds: float | None = Field(None, gt=0, description="Time between scrubs; none without it.")
    scrub_bytes_per_second: float = Field(50.0 * _MIB, gt=0, description="How fast a scrub reads.")

    @field_validator("gc_grace_seconds")
    @classmethod
    def _longer_than_uploads(cls, value: float | None, info: ValidationInfo) -> float | None:
        longest = info.data.get("upload_max_age_seconds", 0.0)
        if value is not None and value <= longest:
            raise ValueError(f"must be more than UPLOAD_MAX_AGE_SECONDS, {longest:g}: an upload may take so long")
        return value

    @property
    def retention(self) -> Retention:
        """What is kept; the grace is twice the age at which an upload is stale, unless it is set."""
        grace_seconds = self.gc_grace_seconds or 2 * self.upload_max_age_seconds
        return Retention(self.keep_revisions, self.keep_used_days, grace_seconds)

    @field_validator("allowed_platforms")
    @classmethod
    def _check_platforms(cls, patterns: str) -> str:
        try:
            return ",".join(check_patterns(patterns.split(",")))
        except InvalidRequest as error:
            raise ValueError(error.message) from None

    @property
    def platform_patterns(self) -> list[str]:
        """For which platforms a bundle may be published that does not say so itself."""
        return self.allowed_platforms.split(",")

    @field_validator("audit_earlier_keys")
    @classmethod
    def _check_keys(cls, keys: list[str]) -> list[str]:
        for key in keys:
            PublicKey.parse(key)
        return keys

    @property
    def earlier_audit_keys(self) -> list[PublicKey]:
        """What checks the signatures from before the present key."""
        return [PublicKey.parse(key) for key in self.audit_earlier_keys]

    @property
    def audit_name(self) -> str:
        """The origin of the audit trail's checkpoints."""
        return self.audit_origin or f"stowage/{self.s3_bucket}"

    @property
    def archive_limits(self) -> ArchiveLimits:
        """The bounds on one tarball."""
        return ArchiveLimits(
            max_compressed_bytes=self.max_artifact_bytes,
            max_unpacked_bytes=self.max_unpacked_bytes,
            max_entries=self.max_entries,
            max_ratio=self.max_compression_ratio,
            max_path_bytes=self.max_path_bytes,
            max_path_depth=self.max_path_depth,
            max_total_path_bytes=self.max_total_path_bytes,
            max_manifest_bytes=self.max_manifest_bytes,
        )

    @classmethod
    def variable_of_limit(cls, limit: str) -> str:
        """The name of the variable that sets a field of the limits of archives."""
        return cls.variable(_SETTINGS_OF_LIMITS.get(limit, limit))
