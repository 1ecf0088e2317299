"""The reference for tiled results: one FP32 pass of eager torch over the whole frame, as a single tile."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.export.exporter import spec_for
from unetrt.export.options import Options
from unetrt.runtime.segmenter import Segmenter
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# Scores closer than this are a tie, which the order of summation decides: an absolute difference, or relative to the
# standard deviation of the scores where that is above 1.
TIE = 1e-4


def whole_frame_scores(
    checkpoint: Checkpoint, frame: NDArray[Any], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Return the logits (classes, H, W) of a raw frame (H, W) or (C, H, W), computed on a device without TF32."""
    geometry = checkpoint.shape.geometry
    tile = (geometry.side_for(frame.shape[-2]), geometry.side_for(frame.shape[-1]))
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exactly, TorchSession(checkpoint.network().to(device), spec_for(checkpoint, Options(tile))) as session:
        return Segmenter(session, lanes=1).scores(frame)


def wrong_pixels(labels: NDArray[Any], scores: NDArray[np.float32]) -> float:
    """Return the share of labels (H, W) that are not the best class of scores (classes, H, W), ties left out."""
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > TIE * max(1.0, float(scores.std()))
    return float((labels != scores.argmax(axis=0))[clear].mean()) if clear.any() else 0.0
