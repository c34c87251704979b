"""The catalogue of problems: every stable `type` that an error answer may have, with a sentence as it is answered.

The OpenAPI document and its examples are made of it. A kind has more than one status where the same thing may be wrong
with a request itself, and with the tarball that a well-formed request carries.
"""

from dataclasses import dataclass
from http import HTTPStatus

PREFIX = "urn:stowage:problem:"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A kind of problem: the statuses that it is answered with, and an example of its `detail`."""

    statuses: tuple[HTTPStatus, ...]
    detail: str


def _of(status: HTTPStatus, details: dict[str, str]) -> dict[str, ProblemType]:
    return {kind: ProblemType((status,), detail) for kind, detail in details.items()}


_MALFORMED_OR_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)

_ARCHIVE_PROBLEMS = {
    "archive-empty": "the body is empty; a gzip or zstd tarball was expected.",
    "archive-truncated": "the archive ends in the middle of dist/index.js. Publish it again.",
    "archive-corrupt": "the archive is damaged. Publish it again.",
    "archive-unsupported-compression": "the body is neither gzip nor zstd. Pack it with tar -czf.",
    "archive-window-too-large": "the zstd frame needs a larger window than is allowed. Compress it without --long.",
    "archive-trailing-data": "something follows the end of the archive. Pack it again.",
    "archive-missing-end": "the archive has no end. Pack it again.",
    "archive-unsupported-member": "dev/null is a device; a bundle holds files, directories and links.",
    "archive-unsafe-path": "../../etc/passwd leads out of the bundle. Pack the directory itself.",
    "archive-unsafe-link": "the link bin/sh leads out of the bundle. Leave it out.",
    "archive-duplicate-member": "dist/index.js is there twice. Pack it again.",
    "archive-not-a-directory": "dist is a file, and dist/index.js would be in it. Pack it again.",
    "archive-too-many-frames": "the archive has too many frames. Compress it in one.",
    "archive-ratio": "the archive unpacks to more than is plausible for its size. Leave out what does not run.",
}

ARCHIVE_KINDS = (*_ARCHIVE_PROBLEMS, "archive-too-large", "archive-too-many-entries")
"""What may be wrong with a tarball."""

PROBLEM_TYPES: dict[str, ProblemType] = {
    **_of(
        HTTPStatus.BAD_REQUEST,
        {
            "invalid-request": "the query string is not what is expected here: limt: Extra inputs are not permitted.",
            "invalid-cursor": "the cursor is not one that this list gave. Begin again without a cursor.",
            "invalid-reference": "“hello” is no bundle reference: use slug@latest, slug@1.2.0 or slug@sha256:…",
            "invalid-concurrency-key": "the concurrency key has “{{ run.id }}”, but only parameters of the run are "
            "known: write {{ parameters.name }}.",
            "invalid-workflow": "step load depends on fetch, which is not a step of this workflow.",
            "invalid-base64": "artifact.data is not base64 (RFC 4648, standard or URL-safe alphabet, with or without "
            "padding).",
            "checksum-mismatch": "artifact.checksum is not the SHA-256 of the bytes in artifact.data. They were "
            "damaged on the way, or the checksum is of something else.",
            "reason-required": "replacing hello@1.2.0 needs the parameter reason: say why, in a sentence.",
            "nothing-to-change": "say what of hello@1.2.0 is to change: status, immutable or both.",
            "invalid-platform": "name at least one platform, as in linux/x64, or any.",
            "body-stalled": "nothing of the body came for 60 seconds. Send it again.",
            "body-damaged": "the body is damaged: it ended before its length. Send it again.",
        },
    ),
    **_of(
        HTTPStatus.UNAUTHORIZED,
        {"unauthenticated": "this needs a token: send the header “Authorization: Bearer <token>”."},
    ),
    **_of(
        HTTPStatus.FORBIDDEN,
        {"forbidden": "the token of “ci” lacks the scope. Ask an administrator for a token that has it."},
    ),
    **_of(
        HTTPStatus.NOT_FOUND,
        {
            "not-found": "there is nothing of this name.",
            "bundle-not-found": "there is no bundle hello. GET /job-bundles lists what there is.",
            "version-not-found": "hello has no version 9.9.9. GET /job-bundles/hello/versions lists what there is.",
            "digest-not-found": "no revision of hello is or was this digest. GET /job-bundles/hello/versions lists "
            "what there is.",
            "artifact-not-found": "there is no artifact with this digest.",
            "job-not-found": "there is no job hello. GET /jobs lists what there is.",
            "workflow-not-found": "there is no workflow hello. GET /workflows lists what there is.",
            "revision-not-found": "hello@1.2.0 has no revision 9. GET /job-bundles/hello/versions/1.2.0/revisions "
            "lists what there is.",
            "event-not-found": "the audit trail has no event 4711.",
            "audit-not-signed": "this registry has no key to sign checkpoints with.",
            "no-checkpoint": "no checkpoint has been signed yet; there will be one soon.",
            "token-not-found": "there is no token with this id. GET /tokens lists what there is.",
            "output-missing": "the output was recorded, but its object is gone from the bucket. Run it again.",
            "unknown-example": "there is no example greetings.",
            "log-missing": "the log is not in the bucket any more.",
        },
    ),
    **_of(
        HTTPStatus.GONE,
        {
            "expired": "the log expired with its retention. What the run recorded is still there.",
            "gone": "this was removed on purpose.",
            "artifact-collected": "the artifact was removed by clean-up. Publish the same bytes again to have it back.",
        },
    ),
    **_of(
        HTTPStatus.METHOD_NOT_ALLOWED,
        {"method-not-allowed": "this path does not take this method; the header Allow names those that it takes."},
    ),
    **_of(
        HTTPStatus.CONFLICT,
        {
            "conflict": "this contradicts what is there.",
            "version-exists": "hello@1.2.0 exists with other content, published by “ci” at 2026-11-23T09:30:00.000Z. "
            "Publish a new version, or replace this one on purpose with force=true and a reason.",
            "version-immutable": "hello@1.2.0 was published as immutable: only an administrator may replace it. "
            "Publish a new version.",
            "artifact-lost": "hello@1.2.0 has equal content in other bytes, but its object is lost from the bucket. "
            "Publish those very bytes again, or replace it with force=true and a reason.",
            "event-not-sealed": "event 4711 is not in a signed checkpoint yet. Ask again soon.",
            "audit-trail-inconsistent": "the audit trail does not continue what was signed before.",
            "version-quarantined": "hello@1.2.0 is quarantined: it leaks memory. Ask an administrator.",
            "version-yanked": "hello@1.2.0 was yanked: it loses data. Use another version, or say allowYanked.",
            "bundle-immutable": "hello is immutable: only an administrator may replace its versions. Publish a new "
            "version.",
            "busy": "this is being done just now. Ask again in a moment.",
            "idempotency-key-in-use": "a request with the idempotency key “daily” is being carried out just now. Ask "
            "again in a moment: the answer will be the same.",
            "token-shown-before": "the token was made and shown by the first request. Revoke it, and make another one.",
            "tree-too-small": "the tree has 1842 events, not yet 2000.",
            "artifact-quarantined": "the artifact is damaged in the bucket. Publish the same bytes again to repair it.",
            "version-deprecated": "hello@1.2.0 is deprecated: use 2.0.0. Name its digest to run it all the same.",
        },
    ),
    **_of(
        HTTPStatus.PRECONDITION_FAILED,
        {
            "precondition-failed": "it is no longer what the caller believes. Look at what is there now.",
            "stale-digest": "hello@1.2.0 is no longer what expectedDigest says. Look at what is there now, and repeat "
            "with its digest if it is still to be replaced.",
        },
    ),
    **_of(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        {
            "too-large": "the body is larger than 1048576 bytes, which is the limit here.",
            "archive-too-large": "the tarball has 6000000000 bytes; at most 4294967296 are accepted. Leave out what "
            "does not run.",
            "archive-too-many-entries": "the archive has more than 200000 members. Leave out what does not run.",
        },
    ),
    **_of(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        {"unsupported-media-type": "the body is text/csv; this takes application/json."},
    ),
    **_of(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        {"range-not-satisfiable": "the artifact has 1024 bytes; ask for a range within."},
    ),
    **_of(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        {
            "digest-mismatch": "the tarball is sha256:…, not sha256:…, which the parameter digest says.",
            "unknown-bundle": "the example greetings has no bundle farewell. It has hello.",
            "idempotency-key-reused": "the idempotency key daily was used for another request. Use a new key for each "
            "run that you want.",
        },
    ),
    "platform-not-allowed": ProblemType(
        _MALFORMED_OR_REFUSED,
        "node_modules/duckdb/duckdb.node needs darwin/arm64; hello allows linux. Rebuild the bundle on Linux.",
    ),
    "unprocessable": ProblemType(_MALFORMED_OR_REFUSED, "step load: “../x” can't be the name of an input."),
    **{kind: ProblemType(_MALFORMED_OR_REFUSED, detail) for kind, detail in _ARCHIVE_PROBLEMS.items()},
    "invalid-manifest": ProblemType(_MALFORMED_OR_REFUSED, "manifest.json: runtime: name node… or python…."),
    "manifest-mismatch": ProblemType(
        _MALFORMED_OR_REFUSED, "manifest.json says version 1.2.1, but it is published as 1.2.0."
    ),
    "entry-missing": ProblemType(_MALFORMED_OR_REFUSED, "the bundle has no dist/index.js, which is its entry."),
    **_of(
        HTTPStatus.TOO_MANY_REQUESTS,
        {
            "too-many-requests": "the token of “ci” asks more often than 20 times a second "
            "(STOWAGE_REGISTRY_TOKEN_REQUESTS_PER_SECOND). Ask again later, or less often.",
            "too-many-unknown-tokens": "more than 50 unknown tokens a second are tried here "
            "(STOWAGE_REGISTRY_UNKNOWN_TOKENS_PER_SECOND). If this token is new, ask again in a moment.",
            "too-many-uploads": "the token of “ci” uploads 4 tarballs just now, which is as many as may go at a time "
            "(STOWAGE_REGISTRY_TOKEN_UPLOADS). Publish this one when another has ended.",
            "upload-quota-exceeded": "the token of “ci” may upload 1073741824 bytes in a day "
            "(STOWAGE_REGISTRY_TOKEN_UPLOAD_BYTES_PER_DAY), and has uploaded 1073000000: 1000000 more are too many. "
            "Publish later.",
            "queue-full": "100000 runs are queued, which is the limit. Try again when some have ended.",
        },
    ),
    **_of(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        {"internal": "something went wrong on our side. The log has it under this request id."},
    ),
    **_of(
        HTTPStatus.SERVICE_UNAVAILABLE,
        {
            "unavailable": "a part that this needs can't be reached just now. Try again in a moment.",
            "database-unavailable": "the database can't be reached just now. Try again in a moment.",
            "object-store-unavailable": "the object store can't be reached just now. Try again in a moment.",
            "registry-unavailable": "the registry can't be reached just now. Try again in a moment.",
            "artifact-damaged": "the object of hello@1.2.0 is missing or damaged in the bucket. Publish the same bytes "
            "again with force=true to repair it.",
        },
    ),
}
