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


def compare(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    against: str,
    target: str,
    scale: float = 1000,
    unit: str = "ms",
) -> None:
    """Print both times `scale`, and the ratio of each pair, ours over theirs, beside what it should be."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(
        f"{name:38} p50 {statistics.median(ours) * scale:7.1f} p95 {percentile(ours, 0.95) * scale:7.1f} {unit}"
        f"   {against}: p50 {statistics.median(theirs) * scale:7.1f} p95 {percentile(theirs, 0.95) * scale:7.1f} {unit}"
        f"   ratio p50 {statistics.median(ratios):.2f} p95 {percentile(ratios, 0.95):.2f} min {min(ratios):.2f}"
        f" max {max(ratios):.2f}   target {target}"
    )
