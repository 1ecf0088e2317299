"""Who is timed: a table of data. Importing it imports no engine; a probe answers with None, or one sentence why not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from unetrt.benchmarks.probes import bfloat16, compiler, monai, torch_gpu
from unetrt.runtime.model.spec import Precision
from unetrt.runtime.sessions import BACKENDS

# What a contender computes on: `cpu`, or `gpu`, the first that CUDA counts.
Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu")
HERE = "unetrt.benchmarks"
# The paper's, in pixels.
USUAL_TILE = 572


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Contender:
    """One way from a raw frame to labels.

    Attributes
    ----------
    name, title
        What the user writes, and what is shown.
    module
        Its `ready(job, contender)` loads the contender.
    precision
        What it computes in on the CPU, and on a GPU.
    devices
        Where it can compute.
    backend
        For unetrt: the inference engine.
    planned
        Whether it cuts by unetrt's tiles; else by its own.
    channels_last, autocast, compiled
        torch's ways.
    probe
        Of what it needs besides.
    """

    name: str
    title: str
    module: str
    precision: tuple[Precision, Precision] = ("fp32", "fp32")
    devices: tuple[Device, ...] = DEVICES
    backend: str = ""
    planned: bool = False
    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False
    probe: Callable[[], str | None] = _nothing

    def precision_on(self, device: Device) -> Precision:
        """Return what it computes in on a device."""
        return self.precision[DEVICES.index(device)]

    def why_not(self, device: Device) -> str | None:
        """Return None where it can be timed on a device, else one sentence that says why not and what helps."""
        if device not in self.devices:
            return f"it computes on the {self.devices[0].upper()}: --device {self.devices[0]}"
        if self.backend:
            (backend,) = (one for one in BACKENDS if one.name == self.backend)
            return backend.probe() or self.probe()
        return (torch_gpu() if device == "gpu" else None) or self.probe()


def _torch(name: str, title: str, **ways: object) -> Contender:
    return Contender(name, f"eager torch, {title}", f"{HERE}.usual_loop", **ways)  # type: ignore[arg-type]


def _unetrt(name: str, engine: str, device: Device, precision: Precision, **fields: object) -> Contender:
    both = (precision, precision)
    fields = {"backend": name, "planned": True} | fields
    return Contender(name, f"unetrt, {engine}", f"{HERE}.ours", both, (device,), **fields)  # type: ignore[arg-type]


REFERENCE = "torch"
# In the order of the table. The first is what the others are held against.
CONTENDERS = (
    _torch(REFERENCE, f"{USUAL_TILE}-tiles at their core (the usual loop)"),
    _torch("torch-channels-last", "the usual loop in channels_last", channels_last=True),
    _torch("torch-amp", "the usual loop under autocast", precision=("bf16", "fp16"), channels_last=True, autocast=True),
    Contender("torch-planned", "eager torch, unetrt's tiles", f"{HERE}.planned_tiles", planned=True),
    Contender(
        "torch-compile",
        "torch.compile, unetrt's tiles",
        f"{HERE}.planned_tiles",
        ("fp32", "fp16"),
        planned=True,
        channels_last=True,
        compiled=True,
        probe=compiler,
    ),
    Contender("monai", "MONAI, sliding window at overlap 0.5", f"{HERE}.sliding_window", probe=monai),
    _unetrt("onnxruntime", "ONNX Runtime", "cpu", "fp32"),
    _unetrt("openvino", "OpenVINO", "cpu", "fp32"),
    _unetrt("openvino-bf16", "OpenVINO in bfloat16", "cpu", "bf16", backend="openvino", probe=bfloat16),
    _unetrt("onnxruntime-cuda", "ONNX Runtime on CUDA", "gpu", "fp16"),
    _unetrt("tensorrt", "TensorRT", "gpu", "fp16"),
)
