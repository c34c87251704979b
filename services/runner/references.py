"""References to bundles, jobs and workflows, and what the registry says they mean."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from libs.common.auth import Principal, Scope
from libs.common.client import RegistryClient, ServiceError
from libs.common.errors import InvalidRequest, NotFound, StowageError, Unavailable, Unprocessable
from libs.common.identifiers import check_digest, check_slug, check_version
from libs.common.models import Job, Resolution, Workflow
from services.runner.standing import Standing, refuse_new_run


@dataclass(frozen=True, slots=True)
class BundleReference:
    """`slug@1.2.0`, `slug@latest` or `slug@sha256:…`."""

    slug: str
    wanted: str

    @classmethod
    def parse(cls, text: str) -> "BundleReference":
        """The reference that `text` is, or InvalidRequest."""
        slug, separator, wanted = text.partition("@")
        if not separator or not wanted:
            raise InvalidRequest(
                f"“{text[:200]}” does not say which version: use {slug[:128] or 'slug'}@1.2.0, "
                f"{slug[:128] or 'slug'}@latest or {slug[:128] or 'slug'}@sha256:…"
            )
        check_slug(slug)
        if wanted.startswith("sha256:"):
            check_digest(wanted)
        elif wanted != "latest":
            check_version(wanted)
        return cls(slug, wanted)

    def __str__(self) -> str:
        return f"{self.slug}@{self.wanted}"

    @property
    def pinned(self) -> bool:
        """Whether it names the bytes themselves."""
        return self.wanted.startswith("sha256:")


async def resolve_bundle(standing: Standing, text: str, principal: Principal, *, allow_yanked: bool) -> Resolution:
    """What a reference means right now; Conflict where a new run may not be of that.

    Forbidden where the principal may not run the bundle: the registry is not asked then, so nothing is told of it.
    """
    reference = BundleReference.parse(text)
    principal.require(Scope.RUNS_WRITE, reference.slug)
    async with _registry_errors_as(Unprocessable):
        resolution = await standing.resolve(reference.slug, reference.wanted)
    refusal = refuse_new_run(resolution, pinned=reference.pinned, allow_yanked=allow_yanked)
    if refusal is not None:
        raise refusal
    return resolution


async def find_job(registry: RegistryClient, slug: str) -> Job:
    """A job's definition, or Unprocessable where there is none."""
    check_slug(slug)
    async with _registry_errors_as(Unprocessable):
        return await registry.job(slug)


async def find_workflow(registry: RegistryClient, slug: str) -> Workflow:
    """A workflow's definition, or NotFound."""
    check_slug(slug)
    async with _registry_errors_as(NotFound):
        return await registry.workflow(slug)


@asynccontextmanager
async def _registry_errors_as(missing: type[StowageError]) -> AsyncIterator[None]:
    """Raise what the registry answers as an error of ours; what it does not find as `missing`."""
    try:
        yield
    except ServiceError as error:
        match error.status:
            case HTTPStatus.NOT_FOUND:
                raise missing(error.message, kind=error.kind) from error
            case HTTPStatus.BAD_REQUEST | HTTPStatus.UNPROCESSABLE_ENTITY | HTTPStatus.CONFLICT | HTTPStatus.GONE:
                raise Unprocessable(error.message, kind=error.kind) from error
            case _:
                raise Unavailable(
                    f"the registry could not be asked: {error.message} If this goes on, check the runner's token.",
                    kind="registry-unavailable",
                ) from error
