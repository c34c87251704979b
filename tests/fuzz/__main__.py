"""`python -m tests.fuzz`: inputs for some minutes. `make fuzz` is the same."""

import argparse
import faulthandler
import resource
import secrets
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Report, attack
from tests.fuzz.targets import TARGETS

_SLICE_SECONDS = 20.0
_HANG_SECONDS = 60.0
_MEMORY_BYTES = 1024 * 1024 * 1024


def main() -> int:
    """Feed every target in turn; 1 where something was found, which is then in files."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Feeds damaged archives, manifests and binaries to what reads them."
    )
    parser.add_argument("--minutes", type=float, default=5, help="how long; 5 by default")
    parser.add_argument("--seed", type=int, help="which inputs; by default others each time")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs go that were found")
    chosen = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    print(f"seed {seed}, {chosen.minutes:g} minutes", flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    report = Report()
    end = time.monotonic() + chosen.minutes * 60
    turn = seed
    while time.monotonic() < end and not report.findings:
        for target in TARGETS.values():
            # Ends the process with its stack where an input never ends.
            faulthandler.dump_traceback_later(_SLICE_SECONDS + _HANG_SECONDS, exit=True)
            attack(target, turn, report, until=min(end, time.monotonic() + _SLICE_SECONDS))
            faulthandler.cancel_dump_traceback_later()
        turn += 1
    for name in TARGETS:
        print(f"{name}: {report.inputs[name]} inputs, {report.taken[name]} of them taken")
    for finding in report.findings:
        chosen.keep.mkdir(exist_ok=True)
        path = chosen.keep / f"{finding.target}-{finding.number}"
        path.write_bytes(finding.content)
        print(f"FOUND: {path}\n{finding.reason}")
    print(f"seeds {seed} to {turn - 1}: {len(report.findings)} findings")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
