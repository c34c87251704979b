"""Copy objects below prefixes from one bucket to another with all that is known of them, or remove all there are."""

import json
import os
import sys

from minio import Minio
from minio.commonconfig import CopySource

PREFIXES = ("artifacts/", "audit/", "logs/", "outputs/", "uploads/")


def main(source: str, target: str | None, prefixes: list[str]) -> None:
    """Say how many objects it were."""
    client = Minio(
        "s3:9000",
        access_key=os.environ["STOWAGE_S3_ACCESS_KEY"],
        secret_key=os.environ["STOWAGE_S3_SECRET_KEY"],
        secure=False,
    )
    if target is not None and not client.bucket_exists(target):
        client.make_bucket(target)
    keys = [item.object_name for prefix in prefixes for item in client.list_objects(source, prefix, recursive=True)]
    for key in keys:
        if target is None:
            client.remove_object(source, key)
        else:
            client.copy_object(target, key, CopySource(source, key))
    print(json.dumps(len(keys)))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(given["source"], given["target"], given["prefixes"])
