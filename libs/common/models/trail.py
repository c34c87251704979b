"""The audit trail."""

from typing import Any

from pydantic import Field

from libs.common.models.base import Resource, Timestamp


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
