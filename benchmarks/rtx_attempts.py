"""Attempts to run TensorRT for RTX on the GPU at hand: an engine for each capability, and the errors it reports.

python -m unetrt.benchmarks.rtx_attempts       writes benchmarks/results/tensorrt-rtx-on-DEVICE.json

Its library has entries for compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and newer. On 9.0 (Hopper), for which it
has none, each attempt is expected to fail, and its messages are kept. Each attempt runs in a separate process, whose
death is an outcome too, and is stored before the next begins.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from unetrt.benchmarks.journal import Journal, Patience
from unetrt.benchmarks.terminal import OneLine
from unetrt.runtime.cuda.device import Buffer, CudaDevice, LibraryObjects, Stream
from unetrt.runtime.cuda.driver import open_driver
from unetrt.runtime.engines.flavours import CAPABILITIES, collected, logger_of, named_flavour
from unetrt.runtime.errors import BackendUnavailableError, EngineError, OptionError, UnetrtError, one_line
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import Machine, this_machine, why_no_gpu
from unetrt.runtime.records import from_json, to_json, validated

KIND, SCHEMA = "TensorRT for RTX on a device", 2
RTX = named_flavour("tensorrt-rtx")
RESULTS = Path("benchmarks", "results")
# Names of ComputeCapability; the first attempt names none.
UNNAMED = "none named"
# In the order in which they are tried: TensorRT's default, this device, then each by its number.
ATTEMPTS = (UNNAMED, "CURRENT", *(f"SM{capability.replace('.', '')}" for capability in CAPABILITIES))
BUILD, LOAD, CONTEXT, PASS = "build", "deserialise", "context", "pass"
# Seconds after which an attempt is given up.
PATIENCE = 60
# Small, so that a failure is due to the device.
SHAPE = UNetShape(depth=3, base=16)


@dataclass
class AttemptOutcome:
    """The outcome of an attempt.

    Attributes
    ----------
    capability
        Compute capability for which the engine was built.
    seconds
        Duration of each step that succeeded, by its name.
    failed
        The step that failed; empty where none did.
    messages
        TensorRT's errors, and ours, in order.
    validity
        TensorRT's verdict on the engine's header on this device; empty if it was not queried.
    """

    capability: str
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    messages: list[str] = field(default_factory=list)
    validity: str = ""

    def take(self, name: str, step: Callable[[], Any]) -> None:
        """Run a step, unless one failed before; it fails by raising or by returning None, as in TensorRT."""
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


class RtxAttempt:
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
        """Create an execution context, which compiles for the device."""
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
        """Return zeros for one input or output of the engine."""
        engine = self.objects[1]
        name = engine.get_tensor_name(index)
        size = self.trt.volume(engine.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
        buffer = self.device.buffer(size)
        self.device.driver.fill(buffer.handle, 0, size, stream.handle)
        self.objects[2].set_tensor_address(name, buffer.handle)
        return buffer


def attempt(model: Path, capability: str) -> AttemptOutcome:
    """Return the outcome for a model and a capability, in this process."""
    import tensorrt_rtx

    outcome = AttemptOutcome(capability)
    tried = RtxAttempt(tensorrt_rtx)
    outcome.take(BUILD, lambda: tried.build(model, capability))
    outcome.take(LOAD, tried.load)
    outcome.validity = tried.validity
    outcome.take(CONTEXT, tried.context)
    outcome.take(PASS, tried.run)
    return outcome


def in_a_child(model: Path, capability: str) -> AttemptOutcome:
    """Return the outcome for a model and a capability in a separate process, whose death is an outcome too."""
    command = [sys.executable, "-m", "unetrt.benchmarks.rtx_attempts", "--one", capability, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return AttemptOutcome(capability, failed="process", messages=[f"it did not end within {PATIENCE} s"])
    if done.returncode == 0:
        return from_json(done.stdout, AttemptOutcome, "the outcome of an attempt", EngineError)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return AttemptOutcome(capability, failed="process", messages=[f"it exited with {done.returncode}: {last}"])


def attempts(
    path: Path, model: Path, machine: Machine, version: str, patience: Patience | None = None
) -> dict[str, AttemptOutcome]:
    """Return the outcome of each capability with one version of TensorRT for RTX; the file keeps those of others.

    Parameters
    ----------
    path
        The results of this device; each attempt is stored before the next begins.
    model
        A model file.
    machine, version
        The machine, and the version of TensorRT for RTX.
    patience
        Time limit, and whether the stored attempts of this version are kept.
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
        stored = journal.take(name, partial(_attempted, model, capability))
        if stored is not None:
            outcomes[capability] = validated(stored, AttemptOutcome, name, OptionError)
    return outcomes


def _attempted(model: Path, capability: str) -> dict[str, Any]:
    return asdict(in_a_child(model, capability))


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
    """Return the file of a device's results."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return folder / f"tensorrt-rtx-on-{name or 'no-gpu'}.json"


def in_one_line(outcome: AttemptOutcome) -> str:
    """Return an outcome in one line."""
    if not outcome.failed:
        return f"{outcome.capability}: runs"
    reason = outcome.messages[0] if outcome.messages else "no reason given"
    return f"{outcome.capability}: failed ({outcome.failed}): {one_line(reason)}"


@click.command(cls=OneLine)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Folder for the result."
)
@click.option("--seconds", type=float, help="Start no attempt after this time.")
@click.option("--resume", is_flag=True, help="Keep the attempts of this version that the result holds.")
@click.option("--one", metavar="CAPABILITY", hidden=True, help="Attempt this one here, and print its outcome.")
@click.argument("model", type=click.Path(path_type=Path), required=False)
def command(folder: Path, seconds: float | None, resume: bool, one: str | None, model: Path | None) -> None:
    """Try to run engines of TensorRT for RTX on the first GPU, and keep the messages of each attempt.

    MODEL is the file to try; a small untrained network otherwise.
    """
    if one is not None and model is not None:
        click.echo(to_json(attempt(model, one)))
        return
    machine, patience = this_machine(), Patience(seconds, resume)
    if not machine.gpu:
        raise BackendUnavailableError(f"these attempts need a GPU, and {why_no_gpu()}")
    if reason := RTX.probe(machine):
        raise BackendUnavailableError(reason)
    path = result_path(folder, machine)
    click.echo(f"{RTX.title} {RTX.version} on {machine}:")
    with scratch_folder() as scratch:
        if model is None:
            model = scratch / "model.onnx"
            write_model(model)
        outcomes = attempts(path, model, machine, RTX.version, patience)
    for outcome in outcomes.values():
        click.echo(f"  {in_one_line(outcome)}")
    if missing := [capability for capability in ATTEMPTS if capability not in outcomes]:
        click.echo(f"the time was up before: {', '.join(missing)} (--resume continues)", err=True)
    click.echo(f"written to {path}")


if __name__ == "__main__":
    logging.disable(logging.INFO)
    command()
