"""Which layer of an export goes wrong first: each convolution's output, held against the network's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from unetrt.export.tiles import tile_batches
from unetrt.export.twins import with_layers
from unetrt.runtime.model.spec import INPUT, ModelSpec, Precision

Array = NDArray[Any]

# What rounding alone may do to a layer's output, relative: far more than the unit roundoff, far less than a defect.
USUAL: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.2}
# How many times the error of the layers before it a layer's error must be to be called an explosion.
JUMP = 5.0


@dataclass(frozen=True)
class LayerError:
    """How far a layer's output is off.

    Attributes
    ----------
    name
        The layer's name in the network, such as `contracting.0.0`.
    error
        Root mean square of the difference over that of the output; infinite where a value is not finite.
    """

    name: str
    error: float

    def __str__(self) -> str:
        off = "holds NaN or infinity" if not np.isfinite(self.error) else f"is off by {self.error:.2g} of its size"
        return f"{self.name}, whose output {off}"


def first_explosion(
    net: nn.Module, reference: ModelSpec, model: onnx.ModelProto, spec: ModelSpec, frame: Array
) -> LayerError | None:
    """Return the first layer of an export that goes wrong on a raw frame (C, H, W); None where the error just grows.

    Parameters
    ----------
    net, reference
        The network in FP32 on the CPU, and how it is fed.
    model, spec
        The export, as ONNX Runtime can compute it, and how it is fed.
    frame
        A frame on which the export answers differently.
    """
    return exploding(layer_errors(net, reference, model, spec, frame), USUAL[spec.precision])


def exploding(errors: Sequence[LayerError], usual: float) -> LayerError | None:
    """Return the first layer whose error is far above those before it and above `usual`, if there is one."""
    before = usual
    for layer in errors:
        if not layer.error <= JUMP * before:
            return layer
        before = max(before, layer.error)
    return None


def layer_errors(
    net: nn.Module, reference: ModelSpec, model: onnx.ModelProto, spec: ModelSpec, frame: Array
) -> list[LayerError]:
    """Return the error of every convolution on a frame, the worst of its tiles, in the order of the graph."""
    import onnxruntime

    twin, layers = with_layers(model)
    session = onnxruntime.InferenceSession(twin.SerializeToString(), providers=["CPUExecutionProvider"])
    worst = dict.fromkeys(layers, 0.0)
    batches = zip(tile_batches(reference, [frame]), tile_batches(spec, [frame]), strict=True)
    for expected_input, given_input in batches:
        given = dict(zip(layers, session.run(list(layers.values()), {INPUT: given_input}), strict=True))
        for name, expected in _outputs(net, expected_input, layers).items():
            worst[name] = max(worst[name], _relative(expected, given[name]))
    return [LayerError(name, error) for name, error in worst.items()]


def _outputs(net: nn.Module, batch: Array, names: dict[str, str]) -> dict[str, Array]:
    """Return what the named layers give for a batch (N, C, h, w), by name."""
    seen: dict[str, Array] = {}
    with _watching(net, names, seen), torch.inference_mode():
        net(torch.from_numpy(batch))
    return seen


@contextmanager
def _watching(net: nn.Module, names: dict[str, str], seen: dict[str, Array]) -> Iterator[None]:
    """Put a copy of what the named layers give into `seen`: the ReLU behind a layer works in place."""

    def keep(name: str) -> Any:
        return lambda _layer, _given, output: seen.__setitem__(name, output.numpy().copy())

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in net.named_modules() if name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _relative(expected: Array, given: Array) -> float:
    if not np.isfinite(given).all():
        return float("inf")
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    difference = float(np.sqrt(np.mean(np.square(given.astype(np.float64) - expected))))
    return difference / size if size else (difference and float("inf"))
