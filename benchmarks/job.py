"""What is measured: a frame and a network, as files, so that each contender loads them in a process of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import Device
from unetrt.runtime.model.spec import Precision


@dataclass(frozen=True)
class Job:
    """A folder with everything that a contender needs.

    Attributes
    ----------
    folder
        Holds checkpoint.safetensors, a model for each precision and frame.tif; contenders write into it too.
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

    def read_frame(self) -> NDArray[Any]:
        """Return the raw frame, (H, W) or (C, H, W)."""
        return np.ascontiguousarray(tifffile.imread(self.frame))
