"""Examples written for one test: sources whose builds do what the test is about."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SOURCES = Path(__file__).parent / "sources"


def waiting_for(path: object) -> str:
    """A build that says a line, and another when `path` is there."""
    return (
        "const fs = require('fs'); console.log('first line');"
        f"while (!fs.existsSync({str(path)!r})) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);"
        "console.log('second line');"
    )


class WrittenExample:
    """An example below `directory`, which is what the setting `examples_dir` names."""

    def __init__(self, directory: Path, name: str = "example") -> None:
        self.directory = directory
        self.name = name
        self.path = directory / name

    def copy(self, slug: str) -> Path:
        """Add a source of tests/builder/sources."""
        return Path(shutil.copytree(_SOURCES / slug, self.path / "bundles" / slug))

    def node(self, slug: str, build: str, *, version: str = "1.0.0", files: Mapping[str, str] | None = None) -> Path:
        """Add a source without dependencies, whose build is the JavaScript `build`; its entry is there before."""
        package = {"name": slug, "version": version}
        return self._write(
            slug,
            {
                "manifest.json": json.dumps({**package, "runtime": "node24", "entry": "index.js"}),
                "package.json": json.dumps({**package, "private": True, "scripts": {"build": "node build.js"}}),
                "package-lock.json": json.dumps(
                    {**package, "lockfileVersion": 3, "requires": True, "packages": {"": package}}
                ),
                "index.js": "exports.handler = () => 1;\n",
                "build.js": build,
                **(files or {}),
            },
        )

    def python(self, slug: str, *, version: str = "1.0.0") -> Path:
        """Add a source for Python."""
        manifest = {"name": slug, "version": version, "runtime": "python3.11", "entry": "main.py"}
        return self._write(
            slug, {"manifest.json": json.dumps(manifest), "main.py": "def handler(context):\n    return 1\n"}
        )

    def job(self, slug: str, bundle: str, **definition: Any) -> None:
        """Add a job."""
        self._define("jobs", slug, {"bundle": bundle, **definition})

    def workflow(self, slug: str, *jobs: str) -> None:
        """Add a workflow of independent steps."""
        steps = [{"name": f"step_{number}", "job": job} for number, job in enumerate(jobs)]
        self._define("workflows", slug, {"steps": steps})

    def _define(self, kind: str, slug: str, definition: dict[str, Any]) -> None:
        path = self.path / kind / f"{slug}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"slug": slug, **definition}))

    def _write(self, slug: str, files: Mapping[str, str]) -> Path:
        source = self.path / "bundles" / slug
        for name, content in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(content)
        return source
