"""The runner as a program: `python -m services.runner serve`, and `gc` for what was kept long enough."""

import argparse
import asyncio
import os
import sys

import asyncpg
import structlog

from libs.common.database import open_pool
from libs.common.errors import StowageError
from libs.common.log import configure_logging
from libs.common.objects import ObjectStore
from libs.common.settings import SettingsError
from libs.common.web import serve_until_signalled
from services.runner.app import create_app
from services.runner.remote.agent import AgentSettings, NotTaken, run_one
from services.runner.remote.link import HolderGone
from services.runner.retention import expiry_of_runs
from services.runner.settings import RunnerSettings


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, 1 when it could not be done, or 2 when the settings are wrong."""
    options = _parser().parse_args(arguments)
    if options.command == "run-one":
        return _run_one()
    try:
        settings = RunnerSettings.from_environment()
    except SettingsError as error:
        print(f"the runner can't start: {error}", file=sys.stderr)
        return 2
    if options.command == "gc":
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        return asyncio.run(_collect(settings, dry_run=options.dry_run))
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    shutdown_seconds = max(settings.shutdown_seconds, settings.leaving_seconds)
    asyncio.run(
        serve_until_signalled(
            create_app(settings), service="runner", settings=settings, shutdown_seconds=shutdown_seconds
        )
    )
    return 0


def _run_one() -> int:
    """Make one attempt for a runner. What it prints last, where it can't, is shown as the cause."""
    configure_logging(log_format="json", level="info")
    try:
        asyncio.run(run_one(AgentSettings.from_environment(os.environ)))
    except (SettingsError, NotTaken, HolderGone) as error:
        print(f"the agent ends: {error}", file=sys.stderr)
        return 1
    return 0


async def _collect(settings: RunnerSettings, *, dry_run: bool) -> int:
    days = settings.retention_days
    if days is None:
        print("STOWAGE_RUNNER_RETENTION_DAYS is not set: logs and outputs of runs are kept.")
        return 0
    objects = ObjectStore(settings)
    url = settings.database_url.get_secret_value()
    try:
        async with open_pool(url, size=2, application_name="stowage-runner-gc") as pool:
            print(await expiry_of_runs(pool, objects, days).by_hand(dry_run=dry_run))
    except (StowageError, OSError, asyncpg.PostgresError) as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1
    finally:
        objects.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.runner", description="Executes runs and workflow runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve the API and execute runs")
    commands.add_parser("run-one", help="make one attempt for a runner that executes runs elsewhere")
    collect = commands.add_parser("gc", help="remove logs and outputs of runs that were kept long enough")
    collect.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
