"""The manifest of a bundle: what `manifest.json` at its root says of it."""

from collections.abc import Container
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from libs.common.errors import InvalidRequest, Unprocessable
from libs.common.identifiers import check_slug, check_version

_KIND = "invalid-manifest"


class Manifest(BaseModel):
    """A manifest that makes sense by itself. Keys that are not named here are kept as extras.

    `entry` is normalised: relative to the bundle's root, without `./`. Bundles for Python may name it `pythonEntry`.
    """

    model_config = ConfigDict(alias_generator=to_camel, extra="allow", frozen=True)

    name: str
    version: str
    runtime: str = Field(pattern=r"^(node|python)[0-9A-Za-z.-]{0,32}$")
    entry: str = Field(min_length=1, max_length=1024)
    description: str | None = None
    capabilities: list[str] = Field(default_factory=list)
    parameters_schema: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def language(self) -> Literal["node", "python"]:
        """What interprets the entry."""
        return "python" if self.runtime.startswith("python") else "node"

    def require_identity(self, slug: str, version: str) -> None:
        """Raise Unprocessable unless this is the manifest of `slug@version`."""
        for key, found, wanted in (("name", self.name, slug), ("version", self.version, version)):
            if found != wanted:
                raise Unprocessable(
                    f"manifest.json says {key} “{found[:140]}”, but the request is for {slug}@{version}. Correct the "
                    "manifest and pack again, or publish under the name and version that the manifest says.",
                    kind="manifest-mismatch",
                    member="manifest.json",
                    field=key,
                    found=found[:140],
                    expected=wanted,
                )

    def require_entry(self, files: Container[str]) -> None:
        """Raise Unprocessable unless the entry is one of `files`, the paths of the bundle's regular files."""
        if self.entry not in files:
            raise Unprocessable(
                f"manifest.json names the entry {self.entry}, but the bundle has no file there. Build the bundle "
                "before packing it, or correct the entry.",
                kind="entry-missing",
                member=self.entry,
            )

    @model_validator(mode="before")
    @classmethod
    def _take_python_entry(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not str(raw.get("runtime", "")).startswith("python"):
            return raw
        named = [raw[key] for key in ("entry", "pythonEntry") if key in raw]
        if len(named) == 2 and named[0] != named[1]:
            raise ValueError("entry and pythonEntry name different files; keep one of them")
        return {**raw, "entry": named[0]} if named else raw

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return _checked(check_slug, name)

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: str) -> str:
        return _checked(check_version, version)

    @field_validator("entry")
    @classmethod
    def _normalise_entry(cls, entry: str) -> str:
        path = PurePosixPath(entry)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError("must be a path relative to the bundle's root, without `..`")
        return str(path)

    @model_validator(mode="after")
    def _check_entry_of_language(self) -> Self:
        if self.language == "python" and not self.entry.endswith(".py"):
            raise ValueError(f"the entry of a bundle for {self.runtime} must be a .py file, not {self.entry}")
        return self


def read_manifest(raw: dict[str, Any]) -> Manifest:
    """The manifest that `raw` is, or Unprocessable naming each field that is wrong."""
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = [
            {"field": ".".join(str(part) for part in item["loc"]) or "(whole)", "message": item["msg"]}
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        summary = "; ".join(f"{item['field']}: {item['message']}" for item in problems[:5])
        raise Unprocessable(
            f"manifest.json is not what is expected: {summary}. Correct it and pack the bundle again.",
            kind=_KIND,
            member="manifest.json",
            errors=problems,
        ) from None


def _checked(check: Any, value: str) -> str:
    try:
        result: str = check(value)
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    return result
