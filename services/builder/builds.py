"""One build: from a source to a published version, in a workspace that is gone afterwards."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.common.client import RegistryClient
from libs.common.completion import in_thread
from libs.common.errors import StowageError, Unprocessable
from libs.common.journal import Journal, JournalLimits, JournalWriter
from libs.common.log import get_logger
from libs.common.manifest import Manifest
from libs.common.models import BuildStage, Failure
from services.builder.commands import CommandFailed, Limits, run_command
from services.builder.copying import copy_source
from services.builder.ledger import HolderLost, Ledger
from services.builder.logs import BuildLogs
from services.builder.publishing import Publication, publish
from services.builder.settings import BuilderSettings
from services.builder.sources import Example, manifest_of
from services.builder.toolchain import Toolchain, command_environment
from services.builder.workspace import Workspace, open_workspace

_LOCK_FILES = ("package-lock.json", "npm-shrinkwrap.json")
_SYSTEM = "system"

_log = get_logger("builder")


@dataclass(frozen=True, slots=True)
class Assignment:
    """What to build, and on whose behalf. `interruption` says why it begins again, if it had begun."""

    build_id: str
    import_id: str
    example: Example
    actor: str
    slug: str
    interruption: str | None

    @property
    def reason(self) -> str:
        """Why the version is replaced, as the audit trail will say."""
        return f"import {self.import_id} of {self.example.name} requested by {self.actor}"


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a build happens: its workspace, the environment of its commands, its log."""

    workspace: Workspace
    environment: dict[str, str]
    log: JournalWriter


class Builds:
    """Carries builds out, a limited number of them side by side."""

    def __init__(
        self,
        *,
        settings: BuilderSettings,
        toolchain: Toolchain,
        registry: RegistryClient,
        ledger: Ledger,
        journal: Journal,
        logs: BuildLogs,
    ) -> None:
        self._settings = settings
        self._toolchain = toolchain
        self._registry = registry
        self._ledger = ledger
        self._journal = journal
        self._logs = logs
        self._places = asyncio.Semaphore(settings.concurrency)

    async def carry_out(self, assignment: Assignment) -> bool:
        """Build and publish; whether that succeeded. Raises HolderLost, and nothing else but cancellation.

        The build has its final state and its log is in the bucket when this returns.
        """
        async with self._places:
            limits = JournalLimits(max_bytes=self._settings.log_max_bytes)
            async with self._journal.writing(assignment.build_id, limits, holder=self._ledger.holder) as log:
                if log.continues and assignment.interruption:
                    log.write(_SYSTEM, f"{assignment.interruption}; the build begins again.", level="warning")
                outcome = await self._attempt(assignment, log)
            if isinstance(outcome, Failure):
                await self._ledger.fail_build(assignment.import_id, assignment.build_id, outcome)
            else:
                await self._ledger.succeed_build(assignment.import_id, assignment.build_id, outcome)
            await self.archive(assignment.build_id)
            return isinstance(outcome, Publication)

    async def close_logs(self, build_ids: Sequence[str], message: str) -> None:
        """End the logs of builds that were ended from outside, with a line that says why."""
        for build_id in build_ids:
            async with self._journal.writing(build_id, holder=self._ledger.holder) as log:
                log.write(_SYSTEM, message, level="error")
            await self.archive(build_id)

    async def archive(self, build_id: str) -> None:
        """Move the log of an ended build to the bucket; what can't be moved now is tried again by the recovery."""
        try:
            await self._logs.archive(build_id)
        except StowageError as error:
            _log.warning("build_log_not_archived", build_id=build_id, error=error.message)

    async def _attempt(self, assignment: Assignment, log: JournalWriter) -> Publication | Failure:
        try:
            published = await self._build(assignment, log)
        except HolderLost:
            raise
        except Exception as error:  # noqa: BLE001  # whatever goes wrong in a build is the build's failure
            failure = _failure_of(error)
            if failure.type == "internal":
                _log.exception("build_broke", build_id=assignment.build_id, slug=assignment.slug)
            _log.warning(
                "bundle_failed",
                import_id=assignment.import_id,
                build_id=assignment.build_id,
                slug=assignment.slug,
                error=failure.message,
            )
            log.write(_SYSTEM, failure.message, level="error")
            return failure
        version = published.version
        facts = {
            "version": version.version,
            "revision": version.revision,
            "digest": version.digest,
            "previous_digest": published.previous_digest,
            "platforms": version.platforms,
        }
        event = "bundle_unchanged" if published.unchanged else "bundle_published"
        _log.info(event, import_id=assignment.import_id, build_id=assignment.build_id, slug=assignment.slug, **facts)
        log.write(_SYSTEM, event.replace("_", " "), fields=facts)
        return published

    async def _build(self, assignment: Assignment, log: JournalWriter) -> Publication:
        log.write(_SYSTEM, f"{assignment.reason}; {self._toolchain.description}")
        source = assignment.example.source(assignment.slug)
        await self._start(assignment, BuildStage.COPY)
        async with open_workspace(self._settings.work_dir, assignment.build_id) as workspace:
            files = await in_thread(copy_source, source, workspace.source)
            manifest = await in_thread(manifest_of, workspace.source, assignment.slug)
            log.write(BuildStage.COPY, f"{files} files of {assignment.slug}@{manifest.version}")
            await in_thread(self._toolchain.install, workspace)
            environment = command_environment(
                workspace,
                inherited=os.environ,
                npm_cache=self._settings.npm_cache,
                extra=self._settings.command_environment,
            )
            site = _Site(workspace, environment, log)
            if (workspace.source / "package.json").is_file():
                await self._build_package(assignment, manifest, site)
            await in_thread(_check_entry, workspace.source, manifest)
            await self._start(assignment, BuildStage.PUBLISH, manifest.version)
            return await publish(
                self._registry,
                assignment.slug,
                manifest.version,
                workspace.source,
                reason=assignment.reason,
                build_id=assignment.build_id,
            )

    async def _build_package(self, assignment: Assignment, manifest: Manifest, site: _Site) -> None:
        source = site.workspace.source
        if not any((source / name).is_file() for name in _LOCK_FILES):
            raise Unprocessable(
                f"{assignment.slug} has a package.json but no package-lock.json, so what would be installed is not "
                "settled. Run “npm install --package-lock-only” in a copy of its folder without node_modules, "
                "and commit package-lock.json.",
                kind="lock-file-missing",
            )
        for stage, command in (
            (BuildStage.INSTALL, ("npm", "ci", "--no-audit", "--no-fund")),
            (BuildStage.BUILD, ("npm", "run", "build", "--if-present")),
            (BuildStage.PRUNE, ("npm", "prune", "--omit=dev", "--no-audit", "--no-fund")),
        ):
            await self._start(assignment, stage, manifest.version)
            await self._run(site, stage, command)
        await in_thread(_drop_caches, source)

    async def _run(self, site: _Site, stage: BuildStage, command: Sequence[str]) -> None:
        site.log.write(stage, "$ " + " ".join(command))
        await run_command(
            [str(site.workspace.programs / command[0]), *command[1:]],
            directory=site.workspace.source,
            environment=site.environment,
            limits=Limits(self._settings.command_seconds, self._settings.grace_seconds),
            on_line=lambda line: site.log.write(stage, line),
            keep_open=(site.workspace.lock,),
        )

    async def _start(self, assignment: Assignment, stage: BuildStage, version: str | None = None) -> None:
        await self._ledger.start_stage(assignment.import_id, assignment.build_id, stage, version)


def _failure_of(error: Exception) -> Failure:
    match error:
        case CommandFailed():
            return Failure(type=error.kind, message=error.message, log_tail=error.tail)
        case StowageError():
            return Failure(type=error.kind, message=error.message)
        case OSError():
            return Failure(type="file-system", message=f"the builder's file system failed: {error}. Try again.")
        case _:
            return Failure(
                type="internal",
                message="something went wrong on our side. The builder's own log has it under the build's id.",
            )


def _check_entry(source: Path, manifest: Manifest) -> None:
    """Raise Unprocessable unless the file that the manifest names is there now."""
    manifest.require_entry({manifest.entry} if (source / manifest.entry).is_file() else set())


def _drop_caches(source: Path) -> None:
    """Remove what tools keep for their next run: it differs from build to build."""
    shutil.rmtree(source / "node_modules" / ".cache", ignore_errors=True)
