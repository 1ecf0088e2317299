"""How fast the runtime is on a GPU, against its goals.

python -m unetrt.benchmarks.gpu_runtime --json benchmarks/results/runtime-gpu.json
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from unetrt.benchmarks.bench import drawn_frame, untrained
from unetrt.benchmarks.gpu_case import Bench, Case
from unetrt.benchmarks.gpu_machine import gpu_environment, require_gpu, state
from unetrt.benchmarks.gpu_report import lines, table
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.whole_frame import whole_frame_scores
from unetrt.runtime.artifacts import require_writable, whole_file
from unetrt.runtime.errors import OptionError, UnetrtError
from unetrt.trainer.checkpoint import Checkpoint

SCHEMA = 1
LARGE, SMALL = (2048, 2048), (1024, 1024)
CASES = (
    Case(LARGE, "uint16", frames=16),
    Case(LARGE, "float32", frames=16),
    Case(SMALL, "uint16", frames=48),
    Case(SMALL, "float32", frames=48),
    Case(SMALL, "uint16", lanes=(2,), batch=4, frames=48),
)
QUICK = (Case(LARGE, "uint16", lanes=(2,), frames=8), Case(SMALL, "uint16", lanes=(2,), frames=16))
# Where the classes of an untrained network are told apart, and its parameter that decides how often each is found.
PROBED, LAST_BIAS = (256, 256), "classify.bias"
# Single frames, for latencies: enough for a 99th percentile.
LATENCIES, FEW_LATENCIES = 100, 20
# Share of the free memory that the planner may fill; engines need some for themselves, torch for its contenders.
FILLED = 0.4


@click.command(cls=OneLine)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
@click.option("--rounds", default=2, show_default=True, help="Rounds of all contenders in turn.")
@click.option("--base", default=64, show_default=True, help="Of the untrained network.")
@click.option("--depth", default=4, show_default=True, help="Of the untrained network.")
@click.option("--quick", is_flag=True, help="One round, 2 lanes, raw input: to see that it runs.")
def command(json_path: Path | None, rounds: int, base: int, depth: int, quick: bool) -> None:
    """Time unetrt on the GPU against eager torch and torch.compile, and hold it against its goals."""
    from rich.console import Console

    device = require_gpu()
    if rounds < 1:
        raise OptionError(f"{rounds} rounds measure nothing: use 1 or more")
    if json_path is not None:
        require_writable(json_path.parent)
    free, _ = torch.cuda.mem_get_info(device)
    rounds, latencies, cases = (1, FEW_LATENCIES, QUICK) if quick else (rounds, LATENCIES, CASES)
    bench = Bench(network(base, depth), device, rounds, latencies, int(FILLED * free))
    console = Console()

    def show(case: dict[str, Any]) -> None:
        console.print(table(case))
        for line in lines(case):
            click.echo(line)

    result = measured(bench, cases, show)
    if json_path is not None:
        with whole_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    failed = [f"{name}: {reason}" for name, reason in result["failed"].items()]
    if failed:
        raise click.ClickException("; ".join(failed))


def network(base: int, depth: int, seed: int = 0) -> Checkpoint:
    """Return an untrained network with fixed normalisation that finds either class as often as the other.

    Without the last, most find one class nearly everywhere, so that labels would show nothing.
    """
    frame = drawn_frame(PROBED, 1)
    plain = untrained(base, depth, seed)
    fixed = replace(plain, normalisation=plain.normalisation.frozen([frame[None]]))
    scores = whole_frame_scores(fixed, frame)
    bias = fixed.weights[LAST_BIAS].copy()
    bias[1] += np.median(scores[0] - scores[1])
    return replace(fixed, weights={**fixed.weights, LAST_BIAS: bias})


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
    shape = bench.checkpoint.shape
    network = {"depth": shape.depth, "base": shape.base, "channels": shape.channels, "classes": shape.classes}
    environment = gpu_environment(bench.device) if cuda else {}
    return {
        "schema": SCHEMA,
        "network": network,
        "environment": environment,
        "states": states,
        "cases": done,
        "failed": failed,
    }


if __name__ == "__main__":
    command()
