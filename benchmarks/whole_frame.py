"""The truth that tiled results are held against: one pass of eager torch over the whole frame, as a single tile."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.export.exporter import Options, spec_for
from unetrt.runtime.segmenter import Segmenter
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# Scores closer than this are a tie, which summation order decides; where they spread over more than 1, this share of
# their deviation.
TIE = 1e-4


def whole_frame_scores(checkpoint: Checkpoint, frame: NDArray[Any]) -> NDArray[np.float32]:
    """Return the logits (classes, H, W) of a raw frame (H, W) or (C, H, W)."""
    geometry = checkpoint.shape.geometry
    tile = (geometry.side_for(frame.shape[-2]), geometry.side_for(frame.shape[-1]))
    with TorchSession(checkpoint.network(), spec_for(checkpoint, Options(tile))) as session:
        return Segmenter(session, lanes=1).scores(frame)


def wrong_pixels(labels: NDArray[Any], scores: NDArray[np.float32]) -> float:
    """Return the share of labels (H, W) that are not the best class of scores (classes, H, W), ties left out."""
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > TIE * max(1.0, float(scores.std()))
    return float((labels != scores.argmax(axis=0))[clear].mean()) if clear.any() else 0.0
