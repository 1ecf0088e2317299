"""The network that `unetrt plan` plans for, and a model file of it that tiles are timed with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Precision
    from unetrt.trainer.checkpoint import Checkpoint


@dataclass(frozen=True)
class PlannedNetwork:
    """A network to plan for.

    Attributes
    ----------
    shape
        Its depth, base, channels and classes.
    precision
        Precision of its arithmetic, unless the user chooses another.
    model
        Its model file, if it is one whose tile can be changed.
    checkpoint
        Its checkpoint, if it was given as one.
    """

    shape: UNetShape
    precision: str = "fp32"
    model: Path | None = None
    checkpoint: "Checkpoint | None" = None

    @classmethod
    def load(cls, path: Path) -> "PlannedNetwork":
        """Return the network of a model file, a checkpoint or a training's folder."""
        if path.suffix.lower() == ".onnx":
            from unetrt.runtime.model.onnx_file import read_spec
            from unetrt.runtime.model.safety import external_files

            spec = read_spec(path)
            if spec.shape is None:
                raise OptionError(f"{path} is not a U-Net of ours, so its cost is unknown: plan for one with --depth")
            return cls(spec.shape, spec.precision, None if external_files(path) else path)
        from unetrt.trainer.checkpoint import load

        checkpoint = load(path)
        return cls(checkpoint.shape, checkpoint=checkpoint)

    def model_file(self, precision: str, folder: Path) -> tuple[Path, str]:
        """Return a model file of this network in a precision, written to `folder` if need be, and what is in it.

        Without a file or a checkpoint of that precision, an untrained network of the same shape is as fast.
        """
        if self.model is not None and precision == self.precision:
            return self.model, f"{self.model}, with each tile"
        if precision == "int8":
            raise OptionError(
                "int8 takes its ranges from frames, and none are given here: measure an int8 model file that holds its "
                "weights, or --precision fp32"
            )
        from unetrt.export.exporter import Options, spec_for
        from unetrt.export.graph import build_graph
        from unetrt.trainer.checkpoint import untrained_checkpoint

        checkpoint, path = self.checkpoint or untrained_checkpoint(self.shape), folder / "network.onnx"
        smallest = self.shape.geometry.smallest
        spec = spec_for(checkpoint, Options((smallest, smallest), precision=cast("Precision", precision)))
        path.write_bytes(build_graph(checkpoint.network(), spec).SerializeToString())
        return path, "the checkpoint's network" if self.checkpoint else "an untrained network of the same shape"
