"""`python -m tests.chaos`: a campaign of some minutes. `make chaos` is the same."""

import argparse
import asyncio
import secrets
import sys
import tempfile
from functools import partial
from pathlib import Path

from libs.common.log import configure_logging
from tests.chaos.campaign import campaign


def main() -> int:
    """Run a campaign; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kills and pauses runners, PostgreSQL and S3 under load; then checks that nothing is lost.",
    )
    parser.add_argument("--minutes", type=float, default=5, help="how long; 5 by default")
    parser.add_argument("--seed", type=int, help="what goes wrong, and when; by default another one each time")
    chosen = parser.parse_args()
    configure_logging(log_format="console", level="error")
    seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    print(f"seed {seed}, {chosen.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="stowage-campaign-", ignore_cleanup_errors=True) as place:
        verdict = asyncio.run(campaign(seed, chosen.minutes * 60, Path(place), partial(print, flush=True)))
    print(f"runs: {dict(verdict.states)}\nattempts: {dict(verdict.attempts)}")
    for sentence in verdict.wrong:
        print(f"WRONG: {sentence}")
    print(f"seed {seed}: {len(verdict.wrong)} things are wrong")
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
