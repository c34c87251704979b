"""Printing measurements: medians, 95th percentiles, and the ratio of pairs that were measured in turn."""

import os
import platform
import statistics
from collections.abc import Sequence


def machine() -> str:
    """One line about the machine, since only ratios hold on others."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(name: str, ours: Sequence[float], theirs: Sequence[float], *, against: str, target: float) -> float:
    """Print both, in seconds, and the ratio of each pair, ours over theirs, beside what it may be at most.

    Returns the median ratio.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(
        f"{name:38} p50 {_ms(statistics.median(ours))} p95 {_ms(percentile(ours, 0.95))} ms"
        f"   {against:16} p50 {_ms(statistics.median(theirs))} p95 {_ms(percentile(theirs, 0.95))} ms"
        f"   ratio p50 {statistics.median(ratios):.2f} p95 {percentile(ratios, 0.95):.2f} min {min(ratios):.2f}"
        f"   target {target:.2f}"
    )
    return statistics.median(ratios)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:7.0f}"
