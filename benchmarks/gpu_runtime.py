"""How fast the runtime is on a GPU, against its goals: what `unetrt bench --goals` measures."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unetrt.benchmarks.gpu_case import BACKENDS, Case, GoalsBench
from unetrt.benchmarks.gpu_machine import gpu_environment, require_gpu, state
from unetrt.benchmarks.journal import Journal, Patience
from unetrt.benchmarks.networks import undecided
from unetrt.runtime.errors import UnetrtError

KIND, SCHEMA = "unetrt bench --goals", 2
LARGE, SMALL = (2048, 2048), (1024, 1024)
CASES = (
    Case(LARGE, "uint16", frames=16),
    Case(SMALL, "uint16", frames=48),
    Case(LARGE, "float32", frames=16),
    Case(SMALL, "float32", frames=48),
    Case(SMALL, "uint16", lanes=(2,), batch=4, frames=48),
)
# Single frames, for latencies: enough for a 99th percentile.
LATENCIES = 100
# Share of the free memory that the planner may fill; engines need some for themselves, torch for its contenders.
FILLED = 0.4

Show = Callable[[dict[str, Any]], None]


def goals(
    base: int,
    depth: int,
    rounds: int,
    backends: Sequence[str],
    show: Show,
    cases: Sequence[Case] = CASES,
    **kept: Any,
) -> dict[str, Any]:
    """Return what JSON stores of all cases on the GPU, shown one by one.

    Parameters
    ----------
    base, depth, rounds
        Of the network; of all contenders in turn.
    backends
        Engines in the order in which they are tried; none for all.
    show
        Called with each case.
    cases
        What is measured.
    kept
        As `measured` has it.

    Raises
    ------
    BackendUnavailableError
        torch finds no GPU.
    OptionError
        An engine does not compute on a GPU.
    """
    device = require_gpu()
    free, _ = torch.cuda.mem_get_info(device)
    with TemporaryDirectory(prefix="unetrt-bench-") as folder:
        network = undecided(base, depth, fixed=True)
        filled = int(FILLED * free)
        bench = GoalsBench(network, device, Path(folder), rounds, LATENCIES, filled, tuple(backends) or BACKENDS)
        return measured(bench, cases, show, **kept)


def measured(
    bench: GoalsBench, cases: Sequence[Case], show: Show, path: Path | None = None, patience: Patience | None = None
) -> dict[str, Any]:
    """Return what JSON stores; a case that fails is named and the others go on.

    Parameters
    ----------
    bench, cases, show
        What is measured, and the callback for each case.
    path
        Where each result is stored before the next case begins; None: nowhere.
    patience
        Nothing new is begun when it is over; cases that the file holds are not measured again, unless they failed.
    """
    cuda = bench.device.type == "cuda"
    environment = gpu_environment(bench.device) if cuda else {}
    about = {
        "network": asdict(bench.checkpoint.shape),
        **{name: environment.get(name) for name in ("gpu", "capability", "versions")},
        "rounds": bench.rounds,
        "backends": bench.backends,
        "cases": [asdict(case) for case in cases],
    }
    fixed = {"kind": KIND, "schema": SCHEMA, "environment": environment}
    journal = Journal(path, about, patience, lambda journal: {**fixed, "failed": failures(journal.results)})
    for name in failures(journal.results):
        del journal.results[name]
    for case in cases:
        result = journal.take(case.name, lambda case=case: _attempted(bench, case))  # type: ignore[misc]
        if result and "failed" not in result:
            show(result)
    return journal.to_dict()


def failures(results: dict[str, Any]) -> dict[str, str]:
    """Return why cases could not be measured, by their names."""
    return {name: case["failed"] for name, case in results.items() if "failed" in case}


def _attempted(bench: GoalsBench, case: Case) -> dict[str, Any]:
    """Return a case's figures with the device's state before and after, or why it failed."""
    cuda = bench.device.type == "cuda"
    before = state(bench.device) if cuda else {}
    try:
        result = bench.measure(case)
    except (UnetrtError, RuntimeError) as error:  # RuntimeError: torch's own, out of memory among them
        return {"failed": f"{type(error).__name__}: {error}", "states": [before]}
    finally:
        gc.collect()  # what a failed case held
        bench.settle()
    return {**result, "states": [before, state(bench.device) if cuda else {}]}
