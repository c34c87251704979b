"""The runner as a program: `python -m services.runner serve`."""

import argparse
import asyncio
import sys

from libs.common.log import configure_logging
from libs.common.settings import SettingsError
from libs.common.web import serve_until_signalled
from services.runner.app import create_app
from services.runner.settings import RunnerSettings


def main() -> int:
    """Run a command; 0, or 2 when the settings are wrong."""
    parser = argparse.ArgumentParser(prog="python -m services.runner", description="Executes runs and workflow runs.")
    parser.add_subparsers(dest="command", required=True).add_parser("serve", help="serve the API and execute runs")
    parser.parse_args()
    try:
        settings = RunnerSettings.from_environment()
    except SettingsError as error:
        print(f"the runner can't start: {error}", file=sys.stderr)
        return 2
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    asyncio.run(serve_until_signalled(create_app(settings), service="runner", settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
