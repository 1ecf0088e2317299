"""Profiles of a GPU by kernel, recorded by CUPTI through torch's profiler."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile, supported_activities

from unetrt.runtime.files.atomic import scratch_folder

# Kernels that a profile names, those with the longest total time first.
NAMED = 15
# Category and unit of time of kernels in Kineto's traces.
KERNEL, MICROSECOND = "kernel", 1e-6


def profiled(
    run: Callable[[], object], activity: ProfilerActivity = ProfilerActivity.CUDA, category: str = KERNEL
) -> dict[str, Any]:
    """Run twice under torch's profiler, and return what CUPTI recorded of the second run.

    CUPTI sees all kernels of the process, including those of TensorRT, ONNX Runtime and torch. The first run lets it
    initialise.

    Parameters
    ----------
    run
        Returns when the device has done its work.
    activity, category
        What is recorded, and which events count: the GPU's kernels.

    Returns
    -------
    `busy`: the union of all kernels' intervals over the wall time of the run, 0 to 1; `wall`: that time, in seconds;
    `kernels`: their number; `by_kernel`: name, seconds and launches of those with the longest total time. `busy` is
    None, and `reason` says why, where no kernel was recorded.
    """
    if activity not in supported_activities():  # type: ignore[no-untyped-call]
        return {"busy": None, "reason": "torch's profiler sees no GPU here"}
    try:
        for _ in range(2):
            with profile(activities=[activity]) as profiler:
                begin = time.perf_counter()
                run()
                wall = time.perf_counter() - begin
        with scratch_folder() as folder:
            trace = folder / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    except (RuntimeError, ValueError, KeyError) as error:  # the profiler's; the other figures stand
        return {"busy": None, "reason": f"the profiler failed: {error}"}
    return kernels_of([event for event in events if event.get("cat") == category], wall)


def kernels_of(kernels: Sequence[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Return what `profiled` does, from the kernels of a Chrome trace and the wall time of the run in seconds."""
    if not kernels:
        return {"busy": None, "reason": "the profile holds no kernel: may this user read the GPU's counters?"}
    busy = MICROSECOND * union((event["ts"], event["ts"] + event["dur"]) for event in kernels)
    spent: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    for event in kernels:
        spent[event["name"]] += MICROSECOND * event["dur"]
        launches[event["name"]] += 1
    longest = sorted(spent, key=lambda name: -spent[name])[:NAMED]
    by_kernel = [{"name": name, "seconds": spent[name], "launches": launches[name]} for name in longest]
    return {"busy": busy / wall, "wall": wall, "kernels": len(kernels), "by_kernel": by_kernel}


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (begin, end)."""
    covered, last = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, last))
        last = max(last, end)
    return covered
