"""What TensorRT for RTX says of the GPU at hand, whatever its documents do: each attempt, and its own words.

python -m unetrt.benchmarks.rtx_on_device       writes benchmarks/results/tensorrt-rtx-on-DEVICE.json

Its library has entries for compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and newer. On 9.0 (Hopper), for which it
has none, each attempt is expected to fail, and shows with which words.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import onnx
import torch

from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.rtx_attempt import UNNAMED, Outcome
from unetrt.export.graph import build_graph
from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.engines.machine import Machine, this_machine, why_no_gpu
from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer.unet import UNet

SCHEMA = 1
RTX = FLAVOURS[1]
RESULTS = Path("benchmarks", "results")
# In the order in which they are tried: all at once, this device, then each by its number.
CAPABILITIES = (UNNAMED, "CURRENT", "SM80", "SM86", "SM89", "SM120", "SM121", "SM75")
# Seconds after which an attempt is given up.
PATIENCE = 60
# Small, so that what is tried is the device and nothing else.
SHAPE = UNetShape(depth=3, base=16)

Try = Callable[[Path, str], Outcome]


def in_a_child(model: Path, capability: str) -> Outcome:
    """Attempt it in a process of its own, whose death is an outcome too."""
    command = [sys.executable, "-m", "unetrt.benchmarks.rtx_attempt", str(model), capability]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return Outcome(capability, failed="process", messages=[f"it did not end within {PATIENCE} s"])
    if done.returncode == 0:
        return Outcome(**json.loads(done.stdout))
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return Outcome(capability, failed="process", messages=[f"it ended with {done.returncode}: {last}"])


def attempts(model: Path, one: Try = in_a_child) -> list[Outcome]:
    """Return what came of each capability."""
    return [one(model, capability) for capability in CAPABILITIES]


def write_model(path: Path) -> None:
    """Write an untrained network in FP16."""
    geometry = SHAPE.geometry
    side = geometry.side_for(3 * geometry.grid)
    spec = ModelSpec((side, side), geometry.halo, geometry.grid, precision="fp16")
    onnx.save(build_graph(UNet(SHAPE).initialise(torch.Generator().manual_seed(0)).eval(), spec), path)


def result_path(folder: Path, machine: Machine) -> Path:
    """Return where the results of a device lie."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return folder / f"tensorrt-rtx-on-{name}.json"


def merged(path: Path, machine: Machine, version: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return a result with these outcomes, and those of other versions that the file holds."""
    known = json.loads(path.read_text(encoding="utf-8"))["versions"] if path.exists() else {}
    tried = {"driver": machine.driver, "os": machine.os, "attempts": [asdict(outcome) for outcome in outcomes]}
    device = {"device": machine.gpu, "capability": machine.capability}
    return {"schema": SCHEMA, **device, "versions": {**known, version: tried}}


def told(outcome: Outcome) -> str:
    """Return an outcome in one line."""
    if not outcome.failed:
        return f"{outcome.capability}: runs"
    reason = outcome.messages[0] if outcome.messages else "it gives no reason"
    return f"{outcome.capability}: failed ({outcome.failed}): {' '.join(reason.split())}"


@click.command(cls=OneLine)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="For the result.")
def command(folder: Path) -> None:
    """Try to run engines of TensorRT for RTX on the first GPU, and keep what each attempt said."""
    machine = this_machine()
    if not machine.gpu:
        raise BackendUnavailableError(f"these attempts need a GPU, and {why_no_gpu()}")
    if reason := RTX.probe(machine):
        raise BackendUnavailableError(reason)
    path = result_path(folder, machine)
    click.echo(f"{RTX.title} {RTX.version} on {machine}:")
    with TemporaryDirectory(prefix="unetrt-") as scratch:
        model = Path(scratch) / "model.onnx"
        write_model(model)
        outcomes = attempts(model)
    for outcome in outcomes:
        click.echo(f"  {told(outcome)}")
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(merged(path, machine, RTX.version, outcomes), indent=2) + "\n")
    click.echo(f"written to {path}")


if __name__ == "__main__":
    command()
