"""Imports and builds."""

from enum import StrEnum

from pydantic import Field

from libs.common.models.base import Failure, Request, Resource, Timestamp


class ImportState(StrEnum):
    """How far an import is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIALLY_FAILED = "partially_failed"
    FAILED = "failed"


class BuildState(StrEnum):
    """How far a build is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class BuildStage(StrEnum):
    """What a build is doing, in order."""

    COPY = "copy"
    INSTALL = "install"
    BUILD = "build"
    PRUNE = "prune"
    PUBLISH = "publish"
    DONE = "done"


class ImportRequest(Request):
    """Rebuild and force-publish the bundles of an example; all of them unless `bundles` names some."""

    example: str
    bundles: list[str] | None = Field(None, min_length=1)


class Build(Resource):
    """One source turned into one artifact. `unchanged`: what was built is what was published already."""

    id: str
    import_id: str
    slug: str
    state: BuildState
    stage: BuildStage | None
    version: str | None
    revision: int | None
    digest: str | None
    previous_digest: str | None
    unchanged: bool | None
    platforms: list[str]
    error: Failure | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    log_expired_at: Timestamp | None = None


class Import(Resource):
    """One request to rebuild and publish the bundles of an example."""

    id: str
    example: str
    state: ImportState
    builds: list[Build]
    error: Failure | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
