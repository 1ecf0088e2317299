"""The reference session: no engine, no arithmetic; its output is its input without the halo.

It shows where every pixel of a frame goes, and what the work around the network costs.
"""

from pathlib import Path

from unetrt.runtime.onnx_file import read_spec
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
        """Crop."""
        inner = slice(self.spec.halo, -self.spec.halo or None)
        core = frames[:, :1, inner, inner]
        scores[...] = core if scores.ndim == core.ndim else core[:, 0]
