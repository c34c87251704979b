"""Become SeaweedFS, told as MinIO is: `server DIRECTORY [--console-address :PORT]`."""

import argparse
import os


def main() -> None:
    """Never returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["server"])
    parser.add_argument("directory")
    parser.add_argument("--console-address", default=":9001")
    told = parser.parse_args()
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["MINIO_ROOT_USER"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = os.environ["MINIO_ROOT_PASSWORD"]
    os.environ["HOME"] = "/tmp"
    os.execvp(  # noqa: S606
        "weed",
        [
            *("weed", "-logdir=/tmp", "mini", f"-dir={told.directory}", "-ip=127.0.0.1", "-ip.bind=0.0.0.0"),
            *("-master.telemetry=false", "-webdav=false", "-s3.port=9000", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-s3.autoCreateBucket=false", "-s3.iam.readOnly=false"),
            f"-admin.port={told.console_address.removeprefix(':')}",
            f"-admin.password={os.environ['MINIO_ROOT_PASSWORD']}",
        ],
    )


if __name__ == "__main__":
    main()
