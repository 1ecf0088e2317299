"""The table of contenders, and how one is loaded, checked and timed in a process without the others.

A contender is a row of data; the function that it names loads it and returns the runs that are timed. A probe answers
with None, or with one sentence that says why the contender cannot be timed here. Importing the table imports no engine
and no torch. `check` and `time_round` are the two pieces of work that `unetrt.benchmarks.processes.fresh` does in a new
process.
"""

import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.benchmarks import processes
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import ModelSpec, Precision
from unetrt.runtime.sessions import BACKENDS

# Where a contender computes: `cpu`, or `gpu`, the first in CUDA's order.
Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu")
# Tile of the paper, in pixels.
USUAL_TILE = 572
# torch.compile calls one of them to compile for a CPU.
COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
# Counted turns of a round, at most.
MOST = 30


def torch_gpu() -> str | None:
    """Tell whether torch computes on a GPU."""
    import torch

    if torch.cuda.is_available():
        return None
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"torch {torch.__version__}, built with {build}, finds no GPU"


def bfloat16() -> str | None:
    """Tell whether this processor multiplies bfloat16, for which OpenVINO would otherwise use float32."""
    from unetrt.runtime.sessions.openvino import has_bfloat16

    return None if has_bfloat16() else "this processor does not multiply bfloat16, which would be computed in float32"


def compiler() -> str | None:
    """Tell whether torch.compile finds a C++ compiler."""
    return None if any(map(shutil.which, COMPILERS)) else "torch.compile needs a C++ compiler: install g++ or clang"


def monai() -> str | None:
    """Tell whether MONAI is installed."""
    return None if find_spec("monai") else "MONAI is not installed: pip install 'unetrt[bench]'"


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Contender:
    """One implementation of the way from a raw frame to labels.

    Attributes
    ----------
    name, title
        Name on the command line, and the title in tables.
    module, load
        Module and the name of its function that loads the contender, called with a `BenchJob` and the contender.
    precision
        Data type of its arithmetic on the CPU, and on a GPU.
    devices
        Where it can compute.
    backend
        For unetrt: the inference engine.
    planned
        Whether it uses unetrt's tiles.
    channels_last, autocast, compiled
        Options of torch.
    probe
        Checks what else it needs.
    """

    name: str
    title: str
    module: str
    load: str = "ready"
    precision: tuple[Precision, Precision] = ("fp32", "fp32")
    devices: tuple[Device, ...] = DEVICES
    backend: str = ""
    planned: bool = False
    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False
    probe: Callable[[], str | None] = _nothing

    def precision_on(self, device: Device) -> Precision:
        """Return the data type of its arithmetic on a device."""
        return self.precision[DEVICES.index(device)]

    def why_not(self, device: Device) -> str | None:
        """Return None where it can be timed on a device, else one sentence that says why not and what helps."""
        if device not in self.devices:
            return f"it computes on the {self.devices[0].upper()}: --device {self.devices[0]}"
        if self.backend:
            (backend,) = (one for one in BACKENDS if one.name == self.backend)
            return backend.probe() or self.probe()
        return (torch_gpu() if device == "gpu" else None) or self.probe()


_TORCH, _OURS = "unetrt.benchmarks.torch_contenders", "unetrt.benchmarks.ours"
REFERENCE = "torch"


def _torch(name: str, title: str, load: str = "usual_loop", **options: Any) -> Contender:
    return Contender(name, title, _TORCH, load, **options)


def _unetrt(name: str, title: str, device: Device, precision: Precision, backend: str, **options: Any) -> Contender:
    both, where = (precision, precision), (device,)
    fields: dict[str, Any] = {"precision": both, "devices": where, "backend": backend, "planned": True}
    return Contender(name, f"unetrt, {title}", _OURS, **fields, **options)


# In the order of all tables. The first is the reference of speed-ups.
CONTENDERS = (
    _torch(REFERENCE, f"eager torch, {USUAL_TILE}-tiles at their core (the usual loop)"),
    _torch("torch-channels-last", "eager torch, the usual loop in channels_last", channels_last=True),
    _torch("torch-amp", "eager torch, the usual loop under autocast", precision=("bf16", "fp16"), channels_last=True,
           autocast=True),
    _torch("torch-planned", "eager torch, unetrt's tiles", "planned_tiles", planned=True),
    _torch("torch-compile", "torch.compile, unetrt's tiles", "planned_tiles", precision=("fp32", "fp16"), planned=True,
           channels_last=True, compiled=True, probe=compiler),
    _torch("monai", "MONAI, sliding window at overlap 0.5", "sliding_window", probe=monai),
    _unetrt("onnxruntime", "ONNX Runtime", "cpu", "fp32", "onnxruntime"),
    _unetrt("openvino", "OpenVINO", "cpu", "fp32", "openvino"),
    _unetrt("openvino-bf16", "OpenVINO in bfloat16", "cpu", "bf16", "openvino", probe=bfloat16),
    _unetrt("onnxruntime-cuda", "ONNX Runtime on CUDA", "gpu", "fp16", "onnxruntime-cuda"),
    _unetrt("tensorrt", "TensorRT", "gpu", "fp16", "tensorrt"),
)  # fmt: skip


@dataclass(frozen=True)
class BenchJob:
    """A folder with the frame and the network as files, from which each contender loads them.

    Attributes
    ----------
    folder
        Holds checkpoint.safetensors, a model for each precision, frame.tif and classes.npy; contenders write into it
        too.
    device
        Where they compute.
    enough
        Seconds after which a round of a contender takes no further turn.
    """

    folder: Path
    device: Device = "cpu"
    enough: float = 5.0

    @property
    def checkpoint(self) -> Path:
        """The network, for torch."""
        return self.folder / "checkpoint.safetensors"

    def model(self, precision: Precision) -> Path:
        """Return the path of the same network, exported."""
        return self.folder / f"{precision}.onnx"

    @property
    def frame(self) -> Path:
        """The raw frame, an uncompressed TIFF."""
        return self.folder / "frame.tif"

    @property
    def torch_device(self) -> str:
        """The device, as torch names it."""
        return "cuda" if self.device == "gpu" else "cpu"

    def write_frame(self, frame: NDArray[Any]) -> None:
        """Write a raw frame, (H, W) or (C, H, W)."""
        axes = "YX" if frame.ndim == 2 else "CYX"
        tifffile.imwrite(self.frame, frame, photometric="minisblack", metadata={"axes": axes})

    @property
    def _classes(self) -> Path:
        return self.folder / "classes.npy"

    def write_classes(self, classes: NDArray[np.uint8]) -> None:
        """Write the class map of the drawn cells, (H, W): what contenders decode to objects."""
        np.save(self._classes, classes)

    def read_classes(self) -> NDArray[np.uint8] | None:
        """Return the class map of the drawn cells, (H, W); None where there is none."""
        return np.load(self._classes) if self._classes.exists() else None

    def read_frame(self) -> NDArray[Any]:
        """Return the raw frame, (H, W) or (C, H, W)."""
        return np.ascontiguousarray(tifffile.imread(self.frame))


@dataclass(frozen=True)
class About:
    """Description of a loaded contender.

    Attributes
    ----------
    tile, tiles, flops
        Its tile (H, W) in pixels, tiles per frame, and the floating-point operations of all of them, borders
        included, two for each multiply-accumulate.
    right_within
        The corner of the frame (H, W), in pixels from its top left, where its labels must equal those of one pass over
        the whole frame; None where it has checked itself.
    checked
        What is checked, in a few words.
    engine
        The inference engine, for unetrt.
    """

    tile: tuple[int, int]
    tiles: int
    flops: int
    right_within: tuple[int, int] | None
    checked: str
    engine: str = ""


@dataclass(frozen=True)
class Ready:
    """A loaded contender.

    Attributes
    ----------
    about
        Its description.
    ways
        What can be timed, by section (`unetrt.benchmarks.result.WAYS`). Each call takes one frame from begin to end and
        returns when the device is done; that of `SEGMENT` returns the labels, (H, W) uint8.
    phases
        Seconds of the last frame's phases, by name.
    """

    about: About
    ways: Mapping[str, Callable[[], NDArray[Any] | None]]
    phases: Callable[[], Mapping[str, float]] = dict


def planned(shape: UNetShape, spec: ModelSpec, frame: tuple[int, int], engine: str = "") -> About:
    """Return the description of a contender that uses a model's tiles, for a frame (H, W)."""
    tiles = len(spec.plan(frame))
    return About(spec.tile, tiles, 2 * tiles * shape.macs(*spec.tile), frame, "all labels", engine)


@dataclass(frozen=True)
class Round:
    """What a contender's process measured.

    Attributes
    ----------
    seconds
        Each counted run, by section.
    phases
        Median seconds of a frame's phases, by name.
    host_memory, device_memory
        Bytes, as in `Measured`.
    joules
        Mean energy per frame, as in `Measured`.
    """

    seconds: dict[str, list[float]]
    phases: dict[str, float]
    host_memory: int | None = None
    device_memory: int | None = None
    joules: float | None = None


def check(contender: Contender, job: BenchJob) -> tuple[About, NDArray[Any]]:
    """Load a contender; return its description and its labels of the frame, (H, W) uint8."""
    loaded = _load(contender, job)
    return loaded.about, np.asarray(loaded.ways[SEGMENT]())


def time_round(contender: Contender, job: BenchJob) -> Round:
    """Load a contender, and time its runs in turn."""
    used = processes.device_memory() if job.device == "gpu" else None
    return timed(_load(contender, job), job, used)


def _load(contender: Contender, job: BenchJob) -> Ready:
    loaded: Ready = getattr(import_module(contender.module), contender.load)(job, contender)
    return loaded


def timed(loaded: Ready, job: BenchJob, used: int | None = None, **clock: Callable[[], float]) -> Round:
    """Time the runs of a loaded contender in turn.

    Parameters
    ----------
    loaded
        The contender.
    job
        Where it computes, and for how long.
    used
        Bytes in use on the GPU before the contender was loaded.
    clock
        `clock` of `in_turn`.
    """
    gpu = job.device == "gpu"
    phases: list[Mapping[str, float]] = []
    energy: list[float] = []

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        if name != SEGMENT:
            yield
            return
        before = processes.joules(gpu)
        yield
        used_up = processes.joules_between(before, processes.joules(gpu))
        energy.extend([] if used_up is None else [used_up])
        phases.append(dict(loaded.phases()))

    seconds = processes.in_turn(loaded.ways, MOST, job.enough, watch=watch, **clock)
    now = processes.device_memory() if gpu else None
    grown = None if used is None or now is None else now - used
    medians = {name: statistics.median(one[name] for one in phases) for name in phases[0]}
    return Round(seconds, medians, processes.peak_memory(), grown, statistics.fmean(energy) if energy else None)
