"""The builder as a program: `serve`, `gc [--dry-run]`, and `purge-legacy-caches --root DIR [--apply]`."""

import argparse
import asyncio
import sys
from pathlib import Path

import asyncpg
import structlog

from libs.common.database import open_pool
from libs.common.errors import StowageError
from libs.common.log import configure_logging
from libs.common.objects import ObjectStore
from libs.common.settings import SettingsError
from libs.common.web import serve_until_signalled
from services.builder.app import SERVICE, create_app
from services.builder.legacy import delete_cache, find_caches
from services.builder.retention import expiry_of_builds
from services.builder.settings import BuilderSettings
from services.builder.toolchain import ToolchainMissing, find_toolchain

_DONE = 0
_REFUSED = 1
_MISUSED = 2


def main() -> int:
    """Run the command that the arguments name; its exit code."""
    arguments = _parser().parse_args()
    if arguments.command == "serve":
        return _serve()
    if arguments.command == "gc":
        return _collect(dry_run=arguments.dry_run)
    return _purge(arguments.root, apply=arguments.apply)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.builder", description="The builder of Stowage.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve HTTP, as the variables STOWAGE_BUILDER_… say")
    collect = commands.add_parser("gc", help="remove logs of builds that were kept long enough")
    collect.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    purge = commands.add_parser(
        "purge-legacy-caches",
        help="find the directories in which the old system cached bundles, and delete them with --apply",
        description="Finds services/catalog/data/example-bundles, services/catalog/data/job-bundles and every "
        "bundle-runtime-cache below DIR. Links are not followed. Ends with 0 when all is well, 1 when something was "
        "refused or could not be deleted, 2 when DIR is no directory.",
    )
    purge.add_argument("--root", required=True, type=Path, metavar="DIR", help="where to look")
    purge.add_argument("--apply", action="store_true", help="delete what is found; without it, it is only listed")
    return parser


def _serve() -> int:
    try:
        settings = BuilderSettings.from_environment()
        find_toolchain()
    except (SettingsError, ToolchainMissing) as error:
        sys.stderr.write(f"the builder can't start: {error}\n")
        return _MISUSED
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    asyncio.run(serve_until_signalled(create_app(settings), service=SERVICE, settings=settings))
    return _DONE


def _collect(*, dry_run: bool) -> int:
    try:
        settings = BuilderSettings.from_environment()
    except SettingsError as error:
        sys.stderr.write(f"builder: {error}\n")
        return _MISUSED
    if settings.retention_days is None:
        print("STOWAGE_BUILDER_RETENTION_DAYS is not set: logs of builds are kept.")
        return _DONE
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        print(asyncio.run(_expire(settings, settings.retention_days, dry_run=dry_run)))
    except (StowageError, OSError, asyncpg.PostgresError) as error:
        sys.stderr.write(f"builder: {error}\n")
        return _REFUSED
    return _DONE


async def _expire(settings: BuilderSettings, days: float, *, dry_run: bool) -> str:
    objects = ObjectStore(settings)
    url = settings.database_url.get_secret_value()
    try:
        async with open_pool(url, size=2, application_name="stowage-builder-gc") as pool:
            return await expiry_of_builds(pool, objects, days).by_hand(dry_run=dry_run)
    finally:
        objects.close()


def _purge(given: Path, *, apply: bool) -> int:
    if not given.is_dir():
        sys.stderr.write(f"{given} is not a directory\n")
        return _MISUSED
    root = given.resolve()
    findings = find_caches(root)
    failed = False
    for cache in findings.caches:
        outcome = "found"
        if apply:
            try:
                delete_cache(root, cache)
                outcome = "deleted"
            except OSError as error:
                outcome, failed = f"NOT DELETED ({error.strerror or error})", True
        print(f"{outcome}: {cache.path}: {cache.files} files, {cache.size} bytes")
    for path in findings.refused:
        print(f"refused: {path} is a link. What it leads to is not touched; look at it yourself.")
    total = sum(cache.size for cache in findings.caches)
    print(f"{len(findings.caches)} directories, {total} bytes below {root}" + _hint(found=bool(total), apply=apply))
    return _REFUSED if failed or findings.refused else _DONE


def _hint(*, found: bool, apply: bool) -> str:
    return ". Nothing was deleted; --apply does that." if found and not apply else "."


if __name__ == "__main__":
    sys.exit(main())
