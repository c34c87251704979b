"""One example of each thing on the wire, for the OpenAPI document. They are models, so that they can't be wrong."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from libs.common import models

_AT = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
_LATER = datetime(2026, 11, 23, 9, 30, 4, 218_000, tzinfo=UTC)
_DIGEST = f"sha256:{'9f' * 32}"
_PREVIOUS = f"sha256:{'3c' * 32}"
_CONTENT = f"sha256:{'71' * 32}"
_HASH = "6hcRhJ8n1rZXG3a1S5uhnFQ1LJ1bu1ywBKiFlYFmJ4Y="
_SUFFIX = "_019aa5c3e1f200112233445566778899"
_MANIFEST = {"name": "hello", "version": "1.2.0", "runtime": "node24", "entry": "dist/index.js"}

_ARTIFACT = models.Artifact(
    digest=_DIGEST,
    content_digest=_CONTENT,
    size=24_117_248,
    unpacked_size=73_400_320,
    file_count=386,
    compression="gzip",
    object_key=f"artifacts/sha256/9f/{'9f' * 32}.tgz",
    manifest=_MANIFEST,
    platforms=["linux/x64/glibc"],
    native=[models.NativeFile(path="node_modules/duckdb/duckdb.node", platform="linux/x64/glibc")],
    created_at=_AT,
)
_BUNDLE = models.Bundle(
    slug="hello",
    display_name="Hello",
    description="Greets whom it is told to.",
    metadata={"team": "weather"},
    latest="1.2.0",
    immutable=False,
    allowed_platforms=["linux", "any"],
    created_at=_AT,
    created_by="ci",
)
_VERSION = models.Version(
    slug="hello",
    version="1.2.0",
    revision=2,
    digest=_DIGEST,
    content_digest=_CONTENT,
    size=24_117_248,
    unpacked_size=73_400_320,
    file_count=386,
    platforms=["linux/x64/glibc"],
    status=models.VersionStatus.ACTIVE,
    status_reason=None,
    status_by=None,
    status_at=None,
    deprecation_reason=None,
    immutable=False,
    manifest=_MANIFEST,
    published_at=_AT,
    published_by="ci",
    replaced_at=_LATER,
    replaced_by="builder",
    reason="rebuilt on Linux",
    previous_digest=_PREVIOUS,
)
_SIDE = models.DiffSide(
    version="1.2.0",
    revision=2,
    digest=_DIGEST,
    content_digest=_CONTENT,
    size=24_117_248,
    unpacked_size=73_400_320,
    file_count=386,
    platforms=["linux/x64/glibc"],
)
_MEMBER = models.DiffMember(type="file", size=5120, mode="0644", digest=f"sha256:{'b2' * 32}", link_target=None)
_TOKEN = models.Token(
    id=f"tok{_SUFFIX}",
    subject="ci",
    scopes=["bundles:read", "bundles:publish"],
    created_at=_AT,
    created_by="admin",
    expires_at=None,
    revoked_at=None,
    last_used_at=_LATER,
)
_JOB_DEFINITION = models.JobDefinition(
    bundle="hello@latest",
    description="Greets the world.",
    parameters={"name": "world"},
    limits=models.Limits(timeout_seconds=300),
    priority=10,
    concurrency_key="{{ parameters.name }}",
)
_WORKFLOW_DEFINITION = models.WorkflowDefinition(
    description="Generates weather, and loads it.",
    parameters={"hours": 1},
    steps=[
        models.StepDefinition(name="generate", job="generator", parameters={"hours": "{{ parameters.hours }}"}),
        models.StepDefinition(
            name="load",
            job="loader",
            depends_on=["generate"],
            inputs={"inbox": models.InputSource(step="generate", path="inbox/")},
        ),
    ],
)
_BUILD = models.Build(
    id=f"bld{_SUFFIX}",
    import_id=f"imp{_SUFFIX}",
    slug="hello",
    state=models.BuildState.SUCCEEDED,
    stage=models.BuildStage.DONE,
    version="1.2.0",
    revision=2,
    digest=_DIGEST,
    previous_digest=_PREVIOUS,
    unchanged=False,
    platforms=["linux/x64/glibc"],
    error=None,
    created_at=_AT,
    started_at=_AT,
    finished_at=_LATER,
)
_RUN = models.Run(
    id=f"run{_SUFFIX}",
    state=models.RunState.SUCCEEDED,
    slug="hello",
    version="1.2.0",
    revision=2,
    digest=_DIGEST,
    job="hello",
    workflow_run_id=None,
    step=None,
    parameters={"name": "world"},
    inputs={},
    result={"greeting": "Hello, world"},
    error=None,
    progress=1.0,
    progress_message="done",
    attempts=1,
    timings=models.Timings(
        queued_ms=4, first_byte_ms=9, fetch_ms=120, start_ms=30, handler_ms=410, upload_ms=12, remove_ms=3
    ),
    sandbox=models.Sandbox(level="bubblewrap", layers=["namespaces", "landlock", "seccomp"], network=False),
    created_at=_AT,
    created_by="ci",
    started_at=_AT,
    finished_at=_LATER,
)
_STEP = models.Step(
    name="generate",
    job="generator",
    state=models.StepState.SUCCEEDED,
    run_id=f"run{_SUFFIX}",
    result={"files": 24},
    error=None,
)

_SAMPLES: tuple[BaseModel, ...] = (
    _ARTIFACT,
    _BUNDLE,
    _VERSION,
    _TOKEN,
    _JOB_DEFINITION,
    _WORKFLOW_DEFINITION,
    _BUILD,
    _RUN,
    models.Health(status="ok"),
    models.Readiness(status="ok", checks={"database": "ok", "bucket": "ok"}),
    models.Revision(
        revision=2,
        origin=models.RevisionOrigin.REPLACED,
        rolled_back_to=None,
        digest=_DIGEST,
        content_digest=_CONTENT,
        size=24_117_248,
        unpacked_size=73_400_320,
        file_count=386,
        platforms=["linux/x64/glibc"],
        published_at=_LATER,
        published_by="builder",
        reason="rebuilt on Linux",
        previous_digest=_PREVIOUS,
        build_id=f"bld{_SUFFIX}",
    ),
    models.FileEntry(
        path="dist/index.js", type="file", size=5120, mode="0644", digest=f"sha256:{'b2' * 32}", link_target=None
    ),
    models.ArtifactDiff.model_validate(
        {
            "from": _SIDE.model_copy(update={"revision": 1, "digest": _PREVIOUS}),
            "to": _SIDE,
            "summary": models.Difference(
                added=0,
                removed=0,
                changed=1,
                added_bytes=0,
                removed_bytes=0,
                changed_bytes=12,
                platforms_added=[],
                platforms_removed=[],
                added_paths=[],
                removed_paths=[],
                changed_paths=["dist/index.js"],
            ),
            "native": models.NativeDifference(added=0, removed=0, added_files=[], removed_files=[]),
            "manifest": [models.ManifestChange(key="runtime", before="node22", after="node24")],
            "items": [
                models.DiffChange(
                    path="dist/index.js",
                    change=models.ChangeKind.CHANGED,
                    before=_MEMBER,
                    after=_MEMBER.model_copy(update={"size": 5132, "digest": _PREVIOUS}),
                    text="@@ -1 +1 @@\n-hello\n+hello, world\n",
                    omitted=None,
                )
            ],
            "next": None,
        }
    ),
    models.ArtifactUses(digests=[_DIGEST, _PREVIOUS]),
    models.ArtifactUsesNoted(unavailable=[_PREVIOUS]),
    models.RollbackRequest(to_revision=1, reason="2 fails on Linux", expected_digest=_DIGEST),
    models.BundlePatch(allowed_platforms=["linux/x64"], reason="our machines are Linux on x64"),
    models.VersionPatch(status=models.VersionStatus.DEPRECATED, reason="use 2.0.0"),
    models.Resolution(
        slug="hello", version="1.2.0", revision=2, status=models.VersionStatus.ACTIVE, artifact=_ARTIFACT
    ),
    models.LegacyPublish(
        slug="hello",
        version="1.2.0",
        manifest=_MANIFEST,
        artifact=models.LegacyArtifact(data="H4sIAAAAAAAAA+3BMQEAAADCoPVPbQwfoAAAAAAAAAAAAAAA", filename="hello.tgz"),
    ),
    models.LegacyAnswer(data=models.LegacyPublished(bundle=_BUNDLE, version=_VERSION)),
    models.TokenRequest(subject="ci", scopes=["bundles:read", "bundles:publish"]),
    models.NewToken(token="stw_…", **dict(_TOKEN)),  # noqa: S106  # an ellipsis
    models.IntrospectionRequest(token="stw_…"),  # noqa: S106  # an ellipsis
    models.Introspection(
        active=True, subject="ci", token_id=f"tok{_SUFFIX}", scopes=["bundles:publish", "bundles:read"]
    ),
    models.AuditEvent(
        id=4711,
        at=_LATER,
        actor="builder",
        action="version.replaced",
        subject="hello@1.2.0",
        digest=_DIGEST,
        previous_digest=_PREVIOUS,
        reason="rebuilt on Linux",
        request_id=f"req{_SUFFIX}",
        client="192.0.2.7",
        detail={"revision": 2},
    ),
    models.InclusionProof(
        event_id=4711,
        leaf='{"action":"version.replaced","actor":"builder","id":4711}',
        leaf_hash=_HASH,
        leaf_index=1840,
        tree_size=1842,
        hashes=[_HASH],
        checkpoint="stowage/stowage\n1842\n…",
    ),
    models.ConsistencyProof.model_validate(
        {"from": 1800, "to": 1842, "fromRoot": _HASH, "toRoot": _HASH, "hashes": [_HASH]}
    ),
    models.Job(slug="hello", definition=_JOB_DEFINITION, revision=1, updated_at=_AT, updated_by="ci"),
    models.Workflow(slug="ingest", definition=_WORKFLOW_DEFINITION, revision=1, updated_at=_AT, updated_by="ci"),
    models.ImportRequest(example="environmental-observatory"),
    models.Import(
        id=f"imp{_SUFFIX}",
        example="environmental-observatory",
        state=models.ImportState.SUCCEEDED,
        builds=[_BUILD],
        error=None,
        created_at=_AT,
        started_at=_AT,
        finished_at=_LATER,
    ),
    models.RunRequest(bundle="hello@1.2.0", parameters={"name": "world"}),
    models.Attempt(
        number=1,
        state=models.AttemptState.SUCCEEDED,
        runner="runner-1/4242",
        error=None,
        started_at=_AT,
        ended_at=_LATER,
    ),
    models.Output(
        path="plots/temperature.svg", size=20_480, digest=f"sha256:{'d4' * 32}", content_type="image/svg+xml"
    ),
    models.WorkflowRunRequest(parameters={"hours": 1}),
    models.WorkflowRun(
        id=f"wfr{_SUFFIX}",
        workflow="ingest",
        state=models.WorkflowRunState.SUCCEEDED,
        parameters={"hours": 1},
        steps=[_STEP],
        created_at=_AT,
        created_by="ci",
        finished_at=_LATER,
    ),
)

_BY_MODEL = {type(sample): sample for sample in _SAMPLES}


def sample_of(model: type[BaseModel]) -> dict[str, Any]:
    """An example of `model` as JSON. Raises LookupError where there is none."""
    if issubclass(model, models.Page):
        (item,) = model.__pydantic_generic_metadata__["args"]
        return {"items": [sample_of(item)], "next": None}
    if model not in _BY_MODEL:
        raise LookupError(f"there is no example of {model.__name__}: write one in libs/common/samples.py")
    sample = _BY_MODEL[model]
    return sample.model_dump(mode="json", by_alias=True, exclude_unset=isinstance(sample, models.Request))
