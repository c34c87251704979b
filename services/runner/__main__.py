"""The runner as a program: `python -m services.runner serve`, `gc` for what was kept long enough, and `run-one`.

Each command imports what it needs: `run-one` begins anew in the pod of each run, and has no use for most of the runner.
"""

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

from libs.common.log import configure_logging
from libs.common.settings import SettingsError

if TYPE_CHECKING:
    from services.runner.settings import RunnerSettings


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, 1 when it could not be done, or 2 when the settings are wrong, for this machine at least."""
    options = _parser().parse_args(arguments)
    match options.command:
        case "run-one":
            return _run_one()
        case "gc":
            return _collect(dry_run=options.dry_run)
    return _serve()


def _run_one() -> int:
    """Make one attempt for a runner. What it prints last, where it can't, is shown as the cause."""
    from services.runner.remote.agent import AgentSettings, NotTaken, run_one
    from services.runner.remote.link import HolderGone

    configure_logging(log_format="json", level="info")
    try:
        asyncio.run(run_one(AgentSettings.from_environment(os.environ)))
    except (SettingsError, NotTaken, HolderGone) as error:
        print(f"the agent ends: {error}", file=sys.stderr)
        return 1
    return 0


def _serve() -> int:
    from libs.common.web import serve_until_signalled
    from services.runner.app import create_app
    from services.runner.sandbox.ladder import SandboxUnavailable
    from services.runner.settings import RunnerSettings

    try:
        settings = RunnerSettings.from_environment()
    except SettingsError as error:
        return _misconfigured(error)
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    try:
        asyncio.run(serve_until_signalled(create_app(settings), service="runner", settings=settings))
    except (SettingsError, SandboxUnavailable) as error:
        return _misconfigured(error)
    return 0


def _collect(*, dry_run: bool) -> int:
    import structlog

    from services.runner.settings import RunnerSettings

    try:
        settings = RunnerSettings.from_environment()
    except SettingsError as error:
        return _misconfigured(error)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if settings.retention_days is None:
        print("STOWAGE_RUNNER_RETENTION_DAYS is not set: logs and outputs of runs are kept.")
        return 0
    return asyncio.run(_expire(settings, settings.retention_days, dry_run=dry_run))


async def _expire(settings: "RunnerSettings", days: float, *, dry_run: bool) -> int:
    import asyncpg

    from libs.common.database import open_pool
    from libs.common.errors import StowageError
    from libs.common.objects import ObjectStore
    from services.runner.retention import expiry_of_runs

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


def _misconfigured(error: Exception) -> int:
    print(f"the runner can't start: {error}", file=sys.stderr)
    return 2


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
