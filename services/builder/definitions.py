"""Jobs and workflows of an example, created or updated at the registry."""

from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import quote

from libs.common.client import RegistryClient, ServiceError
from libs.common.models import Bundle, Job
from services.builder.sources import Definitions


@dataclass(slots=True)
class Registered:
    """What was done. `left_out` needs bundles or jobs that do not exist; `problems` are sentences."""

    jobs: list[str] = field(default_factory=list)
    workflows: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def register(registry: RegistryClient, definitions: Definitions, built: Collection[str]) -> Registered:
    """Create or update what has its bundles: among `built`, or at the registry already. Raises Unavailable."""
    done = Registered()
    for slug, job in definitions.jobs.items():
        bundle = job.bundle.partition("@")[0]
        if bundle not in built and not await _bundle_exists(registry, bundle):
            done.left_out.append(f"job {slug}")
            continue
        try:
            await registry.put_job(slug, job)
            done.jobs.append(slug)
        except ServiceError as error:
            done.problems.append(f"the registry refused the job {slug}: {error.message}")
    for slug, workflow in definitions.workflows.items():
        wanted = {step.job for step in workflow.steps} - set(done.jobs)
        if not all([await _job_exists(registry, name) for name in sorted(wanted)]):
            done.left_out.append(f"workflow {slug}")
            continue
        try:
            await registry.put_workflow(slug, workflow)
            done.workflows.append(slug)
        except ServiceError as error:
            done.problems.append(f"the registry refused the workflow {slug}: {error.message}")
    return done


async def _bundle_exists(registry: RegistryClient, slug: str) -> bool:
    try:
        await registry.get(f"/job-bundles/{quote(slug, safe='')}", Bundle)
    except ServiceError as error:
        if error.status == 404:
            return False
        raise
    return True


async def _job_exists(registry: RegistryClient, slug: str) -> bool:
    try:
        job: Job = await registry.job(slug)
    except ServiceError as error:
        if error.status == 404:
            return False
        raise
    return job.slug == slug
