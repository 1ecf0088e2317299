"""What is measured: a frame and a network, as files, so that each contender loads them in a process of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

USUAL = "eager torch FP32, 572-tiles at their core"
SESSION = "ONNX Runtime alone, the same tiles"
SEGMENT = "unetrt, frame to labels"
PREDICT = "unetrt predict, file to file"
CONTENDERS = (USUAL, SESSION, SEGMENT, PREDICT)


@dataclass(frozen=True)
class Job:
    """A folder with everything that a contender needs.

    Attributes
    ----------
    folder
        Holds checkpoint.safetensors, model.onnx and frame.tif; contenders write into it too.
    """

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The network, for torch."""
        return self.folder / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """The same network, exported."""
        return self.folder / "model.onnx"

    @property
    def frame(self) -> Path:
        """The raw frame, an uncompressed TIFF."""
        return self.folder / "frame.tif"

    def write_frame(self, frame: NDArray[Any]) -> None:
        """Write a raw frame, (H, W) or (C, H, W)."""
        axes = "YX" if frame.ndim == 2 else "CYX"
        tifffile.imwrite(self.frame, frame, photometric="minisblack", metadata={"axes": axes})

    def read_frame(self) -> NDArray[Any]:
        """Return the raw frame, (H, W) or (C, H, W)."""
        return np.ascontiguousarray(tifffile.imread(self.frame))
