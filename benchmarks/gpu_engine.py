"""The engine of the GPU benchmark: the first that runs the network, checked before anything is timed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from unetrt.benchmarks.checks import MOST_WRONG
from unetrt.benchmarks.whole_frame import wrong_pixels
from unetrt.export.exporter import spec_for
from unetrt.export.options import Options
from unetrt.runtime.errors import BackendUnavailableError, ParityError, UnetrtError
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import Session, open_session
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# In the order in which they are tried.
BACKENDS = ("tensorrt", "onnxruntime-cuda")


def first_session(model: Path, backends: Sequence[str] = BACKENDS) -> tuple[Session, dict[str, str]]:
    """Return a session of the first engine that computes a pass, and why those before do not, by their names.

    Raises
    ------
    BackendUnavailableError
        None does.
    """
    refused: dict[str, str] = {}
    for backend in backends:
        try:
            return _proven(open_session(model, backend)), refused
        except UnetrtError as error:
            refused[backend] = str(error)
    raise BackendUnavailableError("; ".join(f"{backend}: {reason}" for backend, reason in refused.items()))


def _proven(session: Session) -> Session:
    """Return a session that has computed a pass; close one that does not."""
    try:
        for lane in session.lanes(1):
            lane.launch()
            lane.wait()
            lane.close()
    except UnetrtError:
        session.close()
        raise
    return session


def wrong_labels(
    segmenters: Sequence[Segmenter], checkpoint: Checkpoint, frame: NDArray[Any], device: torch.device
) -> float:
    """Return the largest share of labels of a frame (H, W) that are not those of one FP32 pass over it.

    Raises
    ------
    ParityError
        They are more than `MOST_WRONG`.
    """
    geometry = checkpoint.shape.geometry
    tile = (geometry.side_for(frame.shape[0]), geometry.side_for(frame.shape[1]))
    net = checkpoint.network().to(device)
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exactly, TorchSession(net, spec_for(checkpoint, Options(tile))) as whole:
        truth = Segmenter(whole, lanes=1).scores(frame)
    wrong = max(wrong_pixels(segmenter.segment(frame).labels, truth) for segmenter in segmenters)
    if wrong > MOST_WRONG:
        name = segmenters[0].session.name
        raise ParityError(f"{wrong:.2%} of the labels of {name} are not those of one FP32 pass over the frame")
    return wrong
