"""The reference session: no engine, no arithmetic; its output is its input without the halo.

It shows where every pixel of a frame goes, and what the work around the network costs.
"""

from pathlib import Path

import numpy as np

from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.sessions.worker import Array, WorkerSession
from unetrt.runtime.spec import ModelSpec


def probe() -> str | None:
    """Return None: it always works."""
    return None


def open_session(path: Path) -> WorkerSession:
    """Return a reference session with the spec of an ONNX file, whose graph is not looked at."""
    return CropSession(read_spec(path))


class CropSession(WorkerSession):
    """Each class's score is the first channel of the normalised frame, cropped to the core; a labels head casts it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, "numpy (reference: crops, computes nothing)")

    def compute(self, frames: Array, scores: Array) -> None:
        """Crop; raw grey values are normalised, as a graph that takes them does."""
        inner = slice(self.spec.halo, -self.spec.halo or None)
        core = frames[..., inner, inner]
        if self.spec.takes_raw:
            core = self.spec.normalisation.measure(core[0]).apply(core.astype(np.float32))
        core = core[:, :1]
        scores[...] = core if scores.ndim == core.ndim else core[:, 0]
