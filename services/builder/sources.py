"""Examples: folders with sources of bundles, and the jobs and workflows that go with them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from libs.common.errors import InvalidRequest, NotFound, Unprocessable
from libs.common.identifiers import check_slug
from libs.common.manifest import Manifest, read_manifest
from libs.common.models import JobDefinition, Request, WorkflowDefinition

MANIFEST = "manifest.json"
_MAX_JSON_BYTES = 1024 * 1024

Definition = TypeVar("Definition", bound=Request)


@dataclass(frozen=True, slots=True)
class Definitions:
    """The jobs and workflows of an example, by slug."""

    jobs: dict[str, JobDefinition] = field(default_factory=dict)
    workflows: dict[str, WorkflowDefinition] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """A folder with sources: `bundles/<slug>/manifest.json`, `jobs/<slug>.json`, `workflows/<slug>.json`."""

    name: str
    path: Path
    bundles: dict[str, Path]

    def choose(self, slugs: list[str] | None) -> dict[str, Path]:
        """The sources of these bundles, or of all; raises InvalidRequest or Unprocessable naming the known ones."""
        if slugs is None:
            return self.bundles
        for slug in slugs:
            check_slug(slug)
        unknown = sorted(set(slugs) - self.bundles.keys())
        if unknown:
            raise Unprocessable(
                f"{self.name} has no bundles {', '.join(unknown)}. It has {', '.join(self.bundles)}.",
                kind="unknown-bundle",
                unknown=unknown,
                known=list(self.bundles),
            )
        return {slug: path for slug, path in self.bundles.items() if slug in slugs}

    def source(self, slug: str) -> Path:
        """The source of one bundle; raises as `choose` does."""
        return self.choose([slug])[slug]

    def definitions(self) -> Definitions:
        """Its jobs and workflows; raises Unprocessable naming the file that is wrong."""
        return Definitions(
            _load(self.path / "jobs", JobDefinition),
            _load(self.path / "workflows", WorkflowDefinition),
        )


def find_example(directory: Path, name: str) -> Example:
    """The example `name` below `directory`; raises InvalidRequest for what is no name, and NotFound."""
    check_slug(name)
    known = {path.name: path for path in _folders(directory)}
    if name not in known:
        raise NotFound(
            f"there is no example “{name}”. Known are: {', '.join(known) or 'none'}.",
            kind="unknown-example",
            known=list(known),
        )
    bundles = {path.name: path for path in _folders(known[name] / "bundles") if (path / MANIFEST).is_file()}
    if not bundles:
        raise Unprocessable(f"the example “{name}” has no bundles: no bundles/<slug>/{MANIFEST} is there.")
    return Example(name, known[name], bundles)


def manifest_of(source: Path, slug: str) -> Manifest:
    """The manifest of the bundle `slug`; raises Unprocessable saying what is wrong with it."""
    manifest = read_manifest(_read_json(source / MANIFEST, MANIFEST))
    if manifest.name != slug:
        raise Unprocessable(
            f"{MANIFEST} says name “{manifest.name}”, but the bundle's folder is {slug}. Make them the same.",
            kind="manifest-mismatch",
        )
    return manifest


def _folders(directory: Path) -> list[Path]:
    """The folders in a directory whose names are slugs. Links are left out: they might lead anywhere."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.is_symlink() and _is_slug(path))


def _is_slug(path: Path) -> bool:
    try:
        check_slug(path.name)
    except InvalidRequest:
        return False
    return True


def _load(directory: Path, shape: type[Definition]) -> dict[str, Definition]:
    found = {}
    for path in sorted(directory.glob("*.json")):
        shown = f"{directory.name}/{path.name}"
        document = _read_json(path, shown)
        slug = document.pop("slug", None)
        if slug != path.stem:
            raise Unprocessable(f"{shown} says slug “{slug}”. Make it the name of the file, {path.stem}.")
        try:
            found[path.stem] = shape.model_validate(document)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
            raise Unprocessable(f"{shown} is not a definition: {problems}.") from None
    return found


def _read_json(path: Path, shown: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_JSON_BYTES + 1)
        if len(content) > _MAX_JSON_BYTES:
            raise Unprocessable(f"{shown} is larger than {_MAX_JSON_BYTES} bytes, which is the limit.")
        document = json.loads(content)
    except OSError as error:
        raise Unprocessable(f"{shown} can't be read: {error.strerror}.") from None
    except ValueError as error:
        raise Unprocessable(f"{shown} is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise Unprocessable(f"{shown} must be a JSON object.")
    return document
