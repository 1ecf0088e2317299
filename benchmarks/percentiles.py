"""Percentiles of single runs, as far as there are runs enough for them."""

from collections.abc import Sequence

import numpy as np

# Per cent -> runs needed: with fewer, no run is expected to lie beyond the percentile, and it would be the slowest's.
RUNS_NEEDED = {50: 1, 95: 20, 99: 100}
WHY = "p95 takes 20 runs and p99 takes 100: with fewer, they would only repeat the slowest run."


def percentiles(latencies: Sequence[float]) -> dict[int, float | None]:
    """Return p50, p95 and p99 in the unit of `latencies`; None where there are too few."""
    return {
        percent: float(np.percentile(latencies, percent)) if len(latencies) >= needed else None
        for percent, needed in RUNS_NEEDED.items()
    }
