"""What TensorRT for RTX says of the GPU at hand: engines for each capability, how far they get, in its own words.

python -m unetrt.benchmarks.rtx_attempts       writes benchmarks/results/tensorrt-rtx-on-DEVICE.json

Its library has entries for compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and newer. On 9.0 (Hopper), for which it
has none, each attempt is expected to fail, and shows with which words. Each attempt runs in a process of its own,
whose death is an outcome too, and is stored before the next begins.
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from unetrt.benchmarks.journal import Journal, Patience
from unetrt.benchmarks.one_line import OneLine
from unetrt.runtime.cuda.device import Buffer, CudaDevice, LibraryObjects, Stream
from unetrt.runtime.cuda.driver import open_driver
from unetrt.runtime.engines.build import collected, logger_of
from unetrt.runtime.engines.flavours import CAPABILITIES, named_flavour
from unetrt.runtime.errors import BackendUnavailableError, EngineError, UnetrtError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import Machine, this_machine, why_no_gpu

KIND, SCHEMA = "TensorRT for RTX on a device", 2
RTX = named_flavour("tensorrt-rtx")
RESULTS = Path("benchmarks", "results")
# In the words of ComputeCapability; for the first nothing is named.
UNNAMED = "none named"
# In the order in which they are tried: all at once, this device, then each by its number.
ATTEMPTS = (UNNAMED, "CURRENT", *(f"SM{capability.replace('.', '')}" for capability in CAPABILITIES))
BUILD, LOAD, CONTEXT, PASS = "build", "deserialise", "context", "pass"
# Seconds after which an attempt is given up.
PATIENCE = 60
# Small, so that what is tried is the device and nothing else.
SHAPE = UNetShape(depth=3, base=16)


@dataclass
class AttemptOutcome:
    """What came of an attempt.

    Attributes
    ----------
    capability
        What the engine was built for.
    seconds
        Of each step that succeeded, by its name.
    failed
        The step that did not; empty where all did.
    messages
        TensorRT's errors, and ours, in order.
    validity
        What TensorRT says of the engine's header on this device; empty where it was not asked.
    """

    capability: str
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    messages: list[str] = field(default_factory=list)
    validity: str = ""

    def take(self, name: str, step: Callable[[], Any]) -> None:
        """Take a step, unless one failed before; it fails by raising or by returning None, as TensorRT does."""
        if self.failed:
            return
        begin = time.perf_counter()
        try:
            with collected(self.messages):
                if step() is None:
                    self.failed = name
        except (UnetrtError, AttributeError, RuntimeError, TypeError) as error:
            self.failed = name
            self.messages.append(f"{type(error).__name__}: {error}")
        else:
            self.seconds[name] = round(time.perf_counter() - begin, 4)


class Attempt:
    """The steps from a model file to one pass.

    Parameters
    ----------
    trt
        TensorRT for RTX.
    """

    def __init__(self, trt: Any) -> None:
        self.trt, self.logger = trt, logger_of(trt)
        self.plan: Any = None
        self.validity = ""

    def build(self, model: Path, capability: str) -> Any:
        """Build an engine."""
        trt, builder = self.trt, self.trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(model.read_bytes(), str(model)):
            raise EngineError(str(parser.get_error(0).desc()))
        config = builder.create_builder_config()
        if capability != UNNAMED:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        self.plan = builder.build_serialized_network(network, config)
        return self.plan

    def load(self) -> Any:
        """Load it on the first GPU."""
        self.device = CudaDevice(open_driver(0, os.environ))
        self.objects = LibraryObjects(self.device).add(lambda: self.trt.Runtime(self.logger))
        runtime = self.objects[0]
        if hasattr(runtime, "get_engine_validity"):
            with self.device.current():
                self.validity = str(runtime.get_engine_validity(bytes(self.plan)[: runtime.engine_header_size]))
        self.objects.add(lambda: self.objects[0].deserialize_cuda_engine(self.plan))
        return self.objects[1]

    def context(self) -> Any:
        """Make a context, which compiles for the device."""
        self.objects.add(self.objects[1].create_execution_context)
        return self.objects[2]

    def run(self) -> bool | None:
        """Compute zeros, and wait."""
        with self.device.current(), self.device.stream() as stream, ExitStack() as memory:
            for index in range(self.objects[1].num_io_tensors):
                memory.enter_context(self._bound(index, stream))
            started = self.objects[2].execute_async_v3(stream.handle)
            stream.synchronize()
        return started or None

    def _bound(self, index: int, stream: Stream) -> Buffer:
        """Return zeros for one end of the engine."""
        engine = self.objects[1]
        name = engine.get_tensor_name(index)
        size = self.trt.volume(engine.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
        buffer = self.device.buffer(size)
        self.device.driver.fill(buffer.handle, 0, size, stream.handle)
        self.objects[2].set_tensor_address(name, buffer.handle)
        return buffer


def attempt(model: Path, capability: str) -> AttemptOutcome:
    """Return how far a model gets that is built for a capability."""
    import tensorrt_rtx

    outcome = AttemptOutcome(capability)
    tried = Attempt(tensorrt_rtx)
    outcome.take(BUILD, lambda: tried.build(model, capability))
    outcome.take(LOAD, tried.load)
    outcome.validity = tried.validity
    outcome.take(CONTEXT, tried.context)
    outcome.take(PASS, tried.run)
    return outcome


def in_a_child(model: Path, capability: str) -> AttemptOutcome:
    """Attempt it in a process of its own, whose death is an outcome too."""
    command = [sys.executable, "-m", "unetrt.benchmarks.rtx_attempts", "--one", capability, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return AttemptOutcome(capability, failed="process", messages=[f"it did not end within {PATIENCE} s"])
    if done.returncode == 0:
        return AttemptOutcome(**json.loads(done.stdout))
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return AttemptOutcome(capability, failed="process", messages=[f"it ended with {done.returncode}: {last}"])


def attempts(
    path: Path, model: Path, machine: Machine, version: str, patience: Patience | None = None
) -> dict[str, AttemptOutcome]:
    """Return what came of each capability with one version of TensorRT for RTX; the file keeps those of others.

    Parameters
    ----------
    path
        The results of this device; each attempt is stored before the next begins.
    model
        A model file.
    machine, version
        What is tried.
    patience
        No attempt begins when it is over; those of this version that the file holds are kept if it says so.
    """
    patience = patience or Patience()
    about = {"device": machine.gpu, "capability": machine.capability}
    fixed = {"kind": KIND, "schema": SCHEMA}
    journal = Journal(path, about, Patience(patience.seconds, resume=True, begun=patience.begun), lambda _: fixed)
    names = {capability: f"{version}, driver {machine.driver}: {capability}" for capability in ATTEMPTS}
    for name in () if patience.resume else names.values():
        journal.results.pop(name, None)
    outcomes = {}
    for capability, name in names.items():
        stored = journal.take(name, lambda capability=capability: asdict(in_a_child(model, capability)))  # type: ignore[misc]
        if stored is not None:
            outcomes[capability] = AttemptOutcome(**stored)
    return outcomes


def write_model(path: Path) -> None:
    """Write an untrained network in FP16."""
    import onnx
    import torch

    from unetrt.export.graph import build_graph
    from unetrt.runtime.model.spec import ModelSpec
    from unetrt.trainer.unet import UNet

    geometry = SHAPE.geometry
    side = geometry.side_for(3 * geometry.grid)
    spec = ModelSpec((side, side), geometry.halo, geometry.grid, precision="fp16")
    onnx.save(build_graph(UNet(SHAPE).initialise(torch.Generator().manual_seed(0)).eval(), spec), path)


def result_path(folder: Path, machine: Machine) -> Path:
    """Return where the results of a device lie."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return folder / f"tensorrt-rtx-on-{name or 'no-gpu'}.json"


def told(outcome: AttemptOutcome) -> str:
    """Return an outcome in one line."""
    if not outcome.failed:
        return f"{outcome.capability}: runs"
    reason = outcome.messages[0] if outcome.messages else "it gives no reason"
    return f"{outcome.capability}: failed ({outcome.failed}): {' '.join(reason.split())}"


@click.command(cls=OneLine)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="For the result.")
@click.option("--seconds", type=float, help="Begin no attempt after so many.")
@click.option("--resume", is_flag=True, help="Keep the attempts of this version that the result holds.")
@click.option("--one", metavar="CAPABILITY", hidden=True, help="Attempt this one here, and print what came of it.")
@click.argument("model", type=click.Path(path_type=Path), required=False)
def command(folder: Path, seconds: float | None, resume: bool, one: str | None, model: Path | None) -> None:
    """Try to run engines of TensorRT for RTX on the first GPU, and keep what each attempt said.

    MODEL is the file to try; a small untrained network otherwise.
    """
    if one is not None and model is not None:
        click.echo(json.dumps(asdict(attempt(model, one))))
        return
    machine, patience = this_machine(), Patience(seconds, resume)
    if not machine.gpu:
        raise BackendUnavailableError(f"these attempts need a GPU, and {why_no_gpu()}")
    if reason := RTX.probe(machine):
        raise BackendUnavailableError(reason)
    path = result_path(folder, machine)
    click.echo(f"{RTX.title} {RTX.version} on {machine}:")
    with TemporaryDirectory(prefix="unetrt-") as scratch:
        if model is None:
            model = Path(scratch) / "model.onnx"
            write_model(model)
        outcomes = attempts(path, model, machine, RTX.version, patience)
    for outcome in outcomes.values():
        click.echo(f"  {told(outcome)}")
    if missing := [capability for capability in ATTEMPTS if capability not in outcomes]:
        click.echo(f"the time was up before: {', '.join(missing)} (--resume goes on)", err=True)
    click.echo(f"written to {path}")


if __name__ == "__main__":
    logging.disable(logging.INFO)
    command()
