"""What each service may do in the bucket, as policies that MinIO, SeaweedFS and AWS read alike.

Each reads and writes below its own prefixes; the runner also reads artifacts. The audit trail can be added to and never
removed. Keys can be listed by all three: readiness asks for the bucket, which is the same right.
"""

from dataclasses import dataclass
from typing import Any

Policy = dict[str, Any]

_READ = ("s3:GetObject",)
_ADD = ("s3:PutObject", "s3:AbortMultipartUpload")
_REMOVE = ("s3:DeleteObject",)


@dataclass(frozen=True, slots=True)
class Rights:
    """The prefixes below which a service may do what."""

    reads: tuple[str, ...]
    adds: tuple[str, ...]
    removes: tuple[str, ...]


RIGHTS = {
    "registry": Rights(
        reads=("artifacts/", "uploads/", "audit/"),
        adds=("artifacts/", "uploads/", "audit/"),
        removes=("artifacts/", "uploads/"),
    ),
    "builder": Rights(reads=("logs/builds/",), adds=("logs/builds/",), removes=("logs/builds/",)),
    "runner": Rights(
        reads=("artifacts/", "logs/runs/", "outputs/"),
        adds=("logs/runs/", "outputs/"),
        removes=("logs/runs/", "outputs/"),
    ),
}
"""By service."""


def policy_of(service: str, bucket: str) -> Policy:
    """The policy of a service's user."""
    rights = RIGHTS[service]
    return {
        "Version": "2012-10-17",
        "Statement": [
            # s3:List* is what all servers know for objects and for uploads in flight.
            _allow(("s3:GetBucketLocation", "s3:List*"), [f"arn:aws:s3:::{bucket}"]),
            *(
                _allow(actions, [f"arn:aws:s3:::{bucket}/{prefix}*" for prefix in prefixes])
                for actions, prefixes in ((_READ, rights.reads), (_ADD, rights.adds), (_REMOVE, rights.removes))
            ),
        ],
    }


def _allow(actions: tuple[str, ...], resources: list[str]) -> Policy:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resources}
