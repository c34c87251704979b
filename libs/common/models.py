"""The shapes on the wire, shared by services and clients so that they can't drift apart.

Names are camelCase on the wire and snake_case here. Requests refuse unknown fields, resources ignore them, so that a
client may be older than its server. Times are RFC 3339 in UTC with milliseconds, sizes are bytes, digests are
`sha256:<hex>`.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel


def rfc3339(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC with milliseconds: `2026-11-22T21:46:00.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _as_text(value: object) -> object:
    """Refuse numbers for moments, which would be taken for seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and "T" in value.upper()):
        return value
    raise ValueError("expected a time as RFC 3339, such as 2030-01-01T00:00:00Z")


Moment = Annotated[datetime, BeforeValidator(_as_text)]
"""A moment that a request names."""

AwareMoment = Annotated[AwareDatetime, BeforeValidator(_as_text)]
"""The same, with its time zone."""


class Resource(BaseModel):
    """Something that a service answers with."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        from_attributes=True,
        json_schema_serialization_defaults_required=True,
    )


class Request(BaseModel):
    """Something that a client sends."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


Item = TypeVar("Item", bound=Resource)


class Page(Resource, Generic[Item]):
    """One page of a list; `next` is the cursor of the next one, null on the last."""

    items: list[Item]
    next: str | None = None

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """`VersionPage` for a page of versions: what the schema is called."""
        return f"{params[0].__name__}Page"


class Problem(Resource):
    """An error (RFC 9457). `type` is stable, `detail` is for a person; more members are facts for programs."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Health(Resource):
    """That the process answers."""

    status: str


class Readiness(Resource):
    """Whether a service can do its work: `ok`, or what is wrong, for each part that it needs."""

    status: str
    checks: dict[str, str]


# --- registry -------------------------------------------------------------------------------------------------------


class VersionStatus(StrEnum):
    """Whether a version is offered. Only an active one can be `latest`."""

    ACTIVE = "active"
    DEPRECATED = "deprecated"  # new runs only by its digest
    YANKED = "yanked"  # new runs only where they say `allowYanked`
    QUARANTINED = "quarantined"  # neither run nor downloaded


class NativeFile(Resource):
    """A member of a bundle that only one platform can load."""

    path: str
    platform: str


class Artifact(Resource):
    """A tarball in the bucket, and what its bytes say."""

    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    compression: str
    object_key: str
    manifest: dict[str, Any]
    platforms: list[str]
    native: list[NativeFile]
    created_at: Timestamp


class ArtifactUses(Request):
    """Artifacts that runs use which have not ended."""

    digests: list[str] = Field(min_length=1, max_length=1000)


class ArtifactUsesNoted(Resource):
    """Of the artifacts whose use was noted, those that can't be had any more."""

    unavailable: list[str]


class Bundle(Resource):
    """A named thing that can be run."""

    slug: str
    display_name: str | None
    description: str | None
    metadata: dict[str, Any]
    latest: str | None
    immutable: bool
    allowed_platforms: list[str] | None
    created_at: Timestamp
    created_by: str


class Version(Resource):
    """A version and its current revision.

    The last four fields are null until it is replaced; `statusReason`, `statusBy` and `statusAt` while it is active.
    """

    slug: str
    version: str
    revision: int
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]
    status: VersionStatus
    status_reason: str | None
    status_by: str | None
    status_at: Timestamp | None
    deprecation_reason: str | None
    immutable: bool
    manifest: dict[str, Any]
    published_at: Timestamp
    published_by: str
    replaced_at: Timestamp | None
    replaced_by: str | None
    reason: str | None
    previous_digest: str | None


class RevisionOrigin(StrEnum):
    """How a revision came about."""

    PUBLISHED = "published"
    REPLACED = "replaced"
    ROLLED_BACK = "rolled_back"


class Revision(Resource):
    """One publication of a version, or a way back to the revision `rolledBackTo`. `buildId` made the artifact."""

    revision: int
    origin: RevisionOrigin
    rolled_back_to: int | None
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]
    published_at: Timestamp
    published_by: str
    reason: str | None
    previous_digest: str | None
    build_id: str | None
    collected_at: Timestamp | None = Field(None, description="Since when its artifact is gone, as nothing kept it.")
    damaged_at: Timestamp | None = Field(None, description="Since when its artifact is quarantined as damaged.")


class RollbackRequest(Request):
    """Point a version at an artifact that it was: exactly one of `toRevision` and `toDigest`."""

    to_revision: int | None = Field(None, ge=1, le=2**31 - 1, description="The revision to go back to.")
    to_digest: str | None = Field(None, description="The artifact to go back to.")
    reason: str | None = Field(None, max_length=1000, description="Why; needed.")
    expected_digest: str | None = Field(None, description="What the version is now, as the caller believes; else 412.")


class FileEntry(Resource):
    """One member of an artifact."""

    path: str
    type: str
    size: int
    mode: str
    digest: str | None
    link_target: str | None


class Difference(Resource):
    """What differs between two artifacts, by file. The lists hold the first paths only, the counts are whole.

    `changedBytes` is by how much the changed files grew, negative where they shrank.
    """

    added: int
    removed: int
    changed: int
    added_bytes: int
    removed_bytes: int
    changed_bytes: int
    platforms_added: list[str]
    platforms_removed: list[str]
    added_paths: list[str]
    removed_paths: list[str]
    changed_paths: list[str]


class DiffSide(Resource):
    """One of two artifacts that are compared, and what it is or was."""

    version: str
    revision: int
    digest: str
    content_digest: str
    size: int
    unpacked_size: int
    file_count: int
    platforms: list[str]


class NativeDifference(Resource):
    """Native files that only one of two artifacts has. The lists hold the first ones only, the counts are whole."""

    added: int
    removed: int
    added_files: list[NativeFile]
    removed_files: list[NativeFile]


class ManifestChange(Resource):
    """A key of the manifest whose value differs; null also stands for a key that is not there."""

    key: str
    before: Any
    after: Any


class ChangeKind(StrEnum):
    """What becomes of a member."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class TextOmission(StrEnum):
    """Why a file is not compared by lines."""

    BINARY = "binary"
    TOO_LARGE = "too-large"


class DiffMember(Resource):
    """A member of one of two artifacts."""

    type: str
    size: int
    mode: str
    digest: str | None
    link_target: str | None


class DiffChange(Resource):
    """A member that differs. `text` is a unified diff, null where none was asked for or bytes of no file differ."""

    path: str
    change: ChangeKind
    before: DiffMember | None
    after: DiffMember | None
    text: str | None
    omitted: TextOmission | None


class ArtifactDiff(Resource):
    """What differs between two artifacts: the summary is whole on each page, the members are listed in pages."""

    before: DiffSide = Field(alias="from")
    after: DiffSide = Field(alias="to")
    summary: Difference
    native: NativeDifference
    manifest: list[ManifestChange]
    items: list[DiffChange]
    next: str | None = None


class VersionPatch(Request):
    """What is to change of a version. Every status but `active` needs a reason."""

    status: VersionStatus | None = None
    immutable: bool | None = None
    reason: str | None = Field(None, max_length=1000)


class BundlePatch(Request):
    """What is to change of a bundle; what is left out stays.

    `allowedPlatforms` are patterns such as `linux`, `linux/x64` and `linux/x64/glibc`, or `any`; null is the registry's
    policy.
    """

    display_name: str | None = Field(None, max_length=200)
    description: str | None = Field(None, max_length=10_000)
    immutable: bool = False
    allowed_platforms: list[str] | None = Field(None, min_length=1, max_length=50)
    reason: str | None = Field(None, max_length=1000)


class Resolution(Resource):
    """What a reference such as `latest`, `1.2.0` or `sha256:…` means right now, with all that a run needs."""

    slug: str
    version: str
    revision: int
    status: VersionStatus
    status_reason: str | None = None
    status_by: str | None = None
    status_at: Timestamp | None = None
    artifact: Artifact


class LegacyArtifact(Request):
    """The tarball inside the older JSON body. `data` is base64: standard or url-safe, or a data URL."""

    data: str
    filename: str | None = None
    content_type: str | None = None
    checksum: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="SHA-256 of the bytes, hexadecimal")


class LegacyPublish(Request):
    """The older JSON body of `POST /job-bundles`."""

    slug: str
    version: str
    manifest: dict[str, Any]
    capability_flags: list[str] = Field(default_factory=list)
    immutable: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    description: str | None = None
    display_name: str | None = None
    force: bool = False
    artifact: LegacyArtifact


class LegacyPublished(Resource):
    """The answer to the older JSON body, below `data`."""

    bundle: Bundle
    version: Version


class LegacyAnswer(Resource):
    """The envelope of the older answer."""

    data: LegacyPublished


class TokenRequest(Request):
    """A token to be made. Scopes are names, narrowed by patterns of slugs where there are any; unknown are refused."""

    subject: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")
    scopes: list[str] = Field(
        min_length=1, max_length=100, description="Such as `bundles:read` or `bundles:publish:observatory-*`."
    )
    expires_at: Moment | None = None


class Token(Resource):
    """A token as it can be shown: never its secret."""

    id: str
    subject: str
    scopes: list[str]
    created_at: Timestamp
    created_by: str
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    last_used_at: Timestamp | None = Field(None, description="To the minute; null until it is used.")


class NewToken(Token):
    """A token at the one moment when its secret is known."""

    token: str


class Introspection(Resource):
    """Whom a token speaks for (after RFC 7662)."""

    active: bool
    subject: str | None = None
    token_id: str | None = None
    scopes: list[str] = Field(default_factory=list)


class IntrospectionRequest(Request):
    """A token that another service was shown."""

    token: str


class AuditEvent(Resource):
    """One line of the audit trail."""

    id: int
    at: Timestamp
    actor: str
    action: str
    subject: str
    digest: str | None
    previous_digest: str | None
    reason: str | None
    request_id: str | None
    client: str | None
    detail: dict[str, Any]


class InclusionProof(Resource):
    """What shows that an event is in the tree that a checkpoint signs (RFC 9162, 2.1.3). Hashes are base64.

    `leaf` is the event as canonical JSON, in the bytes that `leafHash` is of; `checkpoint` is the signed note.
    """

    event_id: int
    leaf: str
    leaf_hash: str
    leaf_index: int
    tree_size: int
    hashes: list[str]
    checkpoint: str


class ConsistencyProof(Resource):
    """What shows that the tree of size `to` begins with that of size `from` (RFC 9162, 2.1.4). Hashes are base64."""

    first: int = Field(alias="from")
    second: int = Field(alias="to")
    first_root: str = Field(alias="fromRoot")
    second_root: str = Field(alias="toRoot")
    hashes: list[str]


# --- jobs and workflows ---------------------------------------------------------------------------------------------


class Limits(Request):
    """What a run may use at most; null is the runner's own setting."""

    timeout_seconds: float | None = Field(None, gt=0, le=86_400)
    memory_bytes: int | None = Field(None, ge=16 * 1024 * 1024)
    processes: int | None = Field(None, ge=1)
    disk_bytes: int | None = Field(None, ge=0)
    cpu_seconds: int | None = Field(None, ge=1)
    file_bytes: int | None = Field(None, ge=0)


class RetryOn(StrEnum):
    """What a run may be tried again after."""

    LOST = "lost"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class Backoff(Request):
    """How long to wait before another attempt.

    `seconds` each time, or twice as long each time, but no more than `maxSeconds`; and then up to the share `jitter` of
    that more or less, so that runs that failed together don't come back together.
    """

    kind: Literal["fixed", "exponential"] = "exponential"
    seconds: float = Field(5.0, ge=0, le=86_400)
    max_seconds: float = Field(300.0, ge=0, le=86_400)
    jitter: float = Field(0.2, ge=0, le=1)


class RetryPolicy(Request):
    """How often a run is tried, and after what.

    Unless a job says more, only when its runner was lost, or when what it needs was not to be had before its handler
    was called: whether a handler may be called again after it failed, only its author knows.
    """

    attempts: int = Field(3, ge=1, le=20)
    on: list[RetryOn] = Field(default_factory=lambda: [RetryOn.LOST, RetryOn.UNAVAILABLE])
    backoff: Backoff = Field(default_factory=Backoff)


SECRET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # noqa: S105  # a pattern
"""What a secret may be called: a name that a file can have, in this directory and no other."""


class QueueLimits(Request):
    """How many runs of a job may be queued, and how many may go at a time; null is as many as there are."""

    max_queued: int | None = Field(None, ge=1, le=1_000_000)
    max_running: int | None = Field(None, ge=1, le=10_000)


Priority = Annotated[int, Field(ge=-100, le=100)]
ConcurrencyKey = Annotated[str, Field(min_length=1, max_length=200)]


class JobDefinition(Request):
    """A runnable definition: a bundle reference and defaults.

    Of its runs with the same `concurrencyKey`, in which `{{ parameters.name }}` stands for the run's own, one goes at a
    time. Runs of higher `priority` come first. `secrets` are names; the runner has the values. With `allowYanked`
    runs may be of a version that was yanked.
    """

    bundle: str = Field(description="slug@version, slug@latest or slug@sha256:…")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    secrets: list[Annotated[str, Field(pattern=SECRET_NAME)]] = Field(default_factory=list, max_length=50)
    limits: Limits = Field(default_factory=Limits)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    queue: QueueLimits = Field(default_factory=QueueLimits)
    priority: Priority = 0
    concurrency_key: ConcurrencyKey | None = None
    allow_yanked: bool = False


class Job(Resource):
    """A job as it is kept."""

    slug: str
    definition: JobDefinition
    revision: int
    updated_at: Timestamp
    updated_by: str


class InputSource(Request):
    """Where an input comes from: an output of an earlier step, or of a run by id (which may be a template).

    A `path` that ends in `/` means everything below it, given to the job as a directory.
    """

    step: str | None = None
    run: str | None = None
    path: str = Field(min_length=1, max_length=1024)
    optional: bool = False


class StepDefinition(Request):
    """One step of a workflow."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    job: str
    depends_on: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, InputSource] = Field(default_factory=dict)


class WorkflowDefinition(Request):
    """A DAG of steps, each a job."""

    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    steps: list[StepDefinition] = Field(min_length=1, max_length=200)


class Workflow(Resource):
    """A workflow as it is kept."""

    slug: str
    definition: WorkflowDefinition
    revision: int
    updated_at: Timestamp
    updated_by: str


# --- builder --------------------------------------------------------------------------------------------------------


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


class Failure(Resource):
    """Why something ended badly: a stable type, and a sentence for a person."""

    type: str
    message: str
    log_tail: list[str] = Field(default_factory=list)


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


# --- runner ---------------------------------------------------------------------------------------------------------


class RunState(StrEnum):
    """How far a run is; the last five are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (RunState.QUEUED, RunState.STARTING, RunState.RUNNING)


class RunRequest(Request):
    """Run a bundle (`slug@1.2.0`, `slug@latest`, `slug@sha256:…`) or a job by its slug: exactly one of the two.

    `priority` and `concurrencyKey` go over those of the job; the key is taken as it is. `allowYanked` accepts a version
    that was yanked.
    """

    bundle: str | None = None
    job: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, InputSource] = Field(default_factory=dict)
    timeout_seconds: float | None = Field(None, gt=0, le=86_400)
    priority: Priority | None = None
    concurrency_key: ConcurrencyKey | None = None
    allow_yanked: bool = False


class Timings(Resource):
    """What each phase of a run's last attempt cost, in milliseconds; null where it was not reached.

    Queued: from acceptance to the lease. First byte: from the lease to the first byte of the bundle, and fetch: from
    the lease until bundle and inputs are verified. Start: from there until the handler is called. Handler, upload of
    the outputs, and removal of the run's directory: each by itself.
    """

    queued_ms: int | None = None
    first_byte_ms: int | None = None
    fetch_ms: int | None = None
    start_ms: int | None = None
    handler_ms: int | None = None
    upload_ms: int | None = None
    remove_ms: int | None = None


class Sandbox(Resource):
    """How a run was confined: the level, the layers it consists of, and whether it had the network."""

    level: str
    layers: list[str]
    network: bool


class Run(Resource):
    """One execution, pinned to an artifact digest when it was accepted."""

    id: str
    state: RunState
    slug: str
    version: str
    revision: int
    digest: str
    job: str | None
    workflow_run_id: str | None
    step: str | None
    parameters: dict[str, Any]
    inputs: dict[str, InputSource]
    result: Any
    error: Failure | None
    progress: float | None
    progress_message: str | None
    attempts: int
    next_attempt_at: Timestamp | None = None
    priority: int = 0
    concurrency_key: str | None = None
    timings: Timings
    sandbox: Sandbox | None
    created_at: Timestamp
    created_by: str
    started_at: Timestamp | None
    finished_at: Timestamp | None
    expired_at: Timestamp | None = None


class AttemptState(StrEnum):
    """How far an attempt is: running, or ended in one of the other ways."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    HANDED_BACK = "handed_back"


class Attempt(Resource):
    """One attempt at a run. `runner` is the machine and process that made it."""

    number: int
    state: AttemptState
    runner: str
    error: Failure | None
    started_at: Timestamp
    ended_at: Timestamp | None


class Output(Resource):
    """A file that a run left in `outputs/`."""

    path: str
    size: int
    digest: str
    content_type: str


class WorkflowRunState(StrEnum):
    """How far a workflow run is; the last three are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """How far a step is: waiting for what it depends on, then as its run; skipped when that failed."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class WorkflowRunRequest(Request):
    """Start a workflow; parameters go over the workflow's defaults."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class Step(Resource):
    """One step of a workflow run and the run that executes it."""

    name: str
    job: str
    state: StepState
    run_id: str | None
    result: Any
    error: Failure | None


class WorkflowRun(Resource):
    """One execution of a workflow."""

    id: str
    workflow: str
    state: WorkflowRunState
    parameters: dict[str, Any]
    steps: list[Step]
    created_at: Timestamp
    created_by: str
    finished_at: Timestamp | None


# --- logs -----------------------------------------------------------------------------------------------------------


class LogEntry(Resource):
    """One line of a log: its source (`stdout`, `stderr`, `logger`, `system`, a build stage) and what it says."""

    seq: int
    at: Timestamp
    source: str
    level: str
    message: str
    fields: dict[str, Any] | None = None
