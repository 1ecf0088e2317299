"""The network that `unetrt plan` plans for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape

if TYPE_CHECKING:
    from collections.abc import Callable

    from unetrt.trainer.checkpoint import Checkpoint


@dataclass(frozen=True)
class Network:
    """A network to plan for.

    Attributes
    ----------
    shape
        Its numbers.
    checkpoint
        Makes what can be exported with any tile.
    precision
        What it computes in, unless the user says otherwise.
    measured_as
        What is measured, for people.
    """

    shape: UNetShape
    checkpoint: "Callable[[], Checkpoint]"
    precision: str
    measured_as: str


def network_of(path: Path | None, **numbers: int) -> Network:
    """Return the network of a model file or a checkpoint, or else that of these numbers (as `UNetShape` has them)."""
    if path is None:
        return _untrained(UNetShape(**numbers), "an untrained network was measured")
    if path.suffix.lower() == ".onnx":
        return _of_model(path)
    from unetrt.trainer.checkpoint import load

    checkpoint = load(path)
    return Network(checkpoint.shape, lambda: checkpoint, "fp32", f"{path} was measured")


def _of_model(path: Path) -> Network:
    from unetrt.runtime.model.onnx_file import read_spec

    spec = read_spec(path)
    if spec.shape is None:
        raise OptionError(f"{path} is no U-Net of ours, so its cost is unknown")
    height, width = spec.tile
    why = f"{path} has the tile {height}x{width} for good"
    return _untrained(spec.shape, f"an untrained network of the same shape was measured: {why}", spec.precision)


def _untrained(shape: UNetShape, measured_as: str, precision: str = "fp32") -> Network:
    def checkpoint() -> "Checkpoint":
        from unetrt.benchmarks.networks import untrained_of

        return untrained_of(shape)

    return Network(shape, checkpoint, precision, measured_as)
