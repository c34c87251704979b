"""Give a cluster the images that the tests use: `python -m tests.kubernetes.images`.

STOWAGE_TEST_LOAD_IMAGES is the command that takes archives of images and gives them to the nodes, such as
`kind load image-archive`. Ours, which `make images` built, and those that STOWAGE_TEST_POSTGRES_IMAGE and
STOWAGE_TEST_S3_IMAGE name.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from libs.common.version import VERSION

_OURS = ("registry", "builder", "runner")
_SERVERS = ("STOWAGE_TEST_POSTGRES_IMAGE", "STOWAGE_TEST_S3_IMAGE")


def main() -> int:
    """Load them; 0, 1 where a command failed, 2 where there is nothing to do it with."""
    command = shlex.split(os.environ.get("STOWAGE_TEST_LOAD_IMAGES", ""))
    engine = shutil.which("podman") or shutil.which("docker")
    if not command or engine is None:
        sys.stderr.write("STOWAGE_TEST_LOAD_IMAGES must be a command, and podman or docker must be installed\n")
        return 2
    try:
        for name in _OURS:
            image = f"docker.io/stowage/{name}:{VERSION}"  # what a cluster takes stowage/… for
            subprocess.run([engine, "tag", f"stowage/{name}:{VERSION}", image], check=True)
            _load(engine, image, command)
        for variable in _SERVERS:
            if named := os.environ.get(variable):
                _load(engine, named, command)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{shlex.join(map(str, error.cmd))} ended with {error.returncode}\n")
        return 1
    return 0


def _load(engine: str, image: str, command: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="stowage-image-") as directory:
        archive = Path(directory) / "image.tar"
        options = ["--format", "docker-archive"] if engine.endswith("podman") else []
        subprocess.run([engine, "save", *options, "--output", str(archive), image], check=True)
        subprocess.run([*command, str(archive)], check=True)


if __name__ == "__main__":
    sys.exit(main())
