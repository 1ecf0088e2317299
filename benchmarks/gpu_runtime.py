"""How fast the runtime is on a GPU, against its goals: what `unetrt bench --goals` measures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unetrt.benchmarks.gpu_case import Bench, Case
from unetrt.benchmarks.gpu_machine import gpu_environment, require_gpu, state
from unetrt.benchmarks.networks import undecided
from unetrt.runtime.errors import UnetrtError

SCHEMA = 1
LARGE, SMALL = (2048, 2048), (1024, 1024)
CASES = (
    Case(LARGE, "uint16", frames=16),
    Case(LARGE, "float32", frames=16),
    Case(SMALL, "uint16", frames=48),
    Case(SMALL, "float32", frames=48),
    Case(SMALL, "uint16", lanes=(2,), batch=4, frames=48),
)
# Single frames, for latencies: enough for a 99th percentile.
LATENCIES = 100
# Share of the free memory that the planner may fill; engines need some for themselves, torch for its contenders.
FILLED = 0.4


def goals(base: int, depth: int, rounds: int, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return what JSON stores of all cases on the GPU, shown one by one; raises BackendUnavailableError without one."""
    device = require_gpu()
    free, _ = torch.cuda.mem_get_info(device)
    bench = Bench(undecided(base, depth, fixed=True), device, rounds, LATENCIES, int(FILLED * free))
    return measured(bench, CASES, show)


def measured(bench: Bench, cases: Sequence[Case], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return what JSON stores; a case that fails is named and the others go on."""
    done, failed = [], {}
    cuda = bench.device.type == "cuda"
    states = {"before": state(bench.device)} if cuda else {}
    for case in cases:
        with TemporaryDirectory(prefix="unetrt-bench-") as scratch:
            try:
                done.append(bench.measure(case, Path(scratch)))
            except (UnetrtError, RuntimeError) as error:  # RuntimeError: torch's own, out of memory among them
                failed[case.name] = f"{type(error).__name__}: {error}"
                continue
        if cuda:
            states[f"after {case.name}"] = state(bench.device)
            torch.cuda.empty_cache()  # engines take their memory past torch, which keeps what it has freed
        show(done[-1])
    environment = gpu_environment(bench.device) if cuda else {}
    return {
        "schema": SCHEMA,
        "network": asdict(bench.checkpoint.shape),
        "environment": environment,
        "states": states,
        "cases": done,
        "failed": failed,
    }
