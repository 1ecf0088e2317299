"""Inputs of benchmarks: drawn frames, untrained networks, and their model files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from unetrt.export.exporter import Options, spec_for
from unetrt.export.graph import build_graph
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.pixels.frames import as_image
from unetrt.trainer.checkpoint import Checkpoint, untrained_checkpoint
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.validation import whole_frame_scores

# Size of the frame that balances an untrained network, and the parameter that decides how often it finds a class.
PROBED, LAST_BIAS = (256, 256), "classify.bias"


def drawn_frame(size: tuple[int, int], channels: int) -> NDArray[Any]:
    """Return a drawn frame, (H, W) or (C, H, W), uint16."""
    return as_image(np.stack([draw(size, seed=1 + channel).frame for channel in range(channels)]))


def untrained(base: int, depth: int, seed: int = 0) -> Checkpoint:
    """Return a network with random weights: as fast as a trained one."""
    return untrained_checkpoint(UNetShape(depth, base), seed)


def undecided(base: int, depth: int, seed: int = 0, *, fixed: bool = False) -> Checkpoint:
    """Return an untrained network that finds both classes equally often.

    Most find one class nearly everywhere, so that wrong labels would not show.

    Parameters
    ----------
    base, depth, seed
        As in `untrained`.
    fixed
        Whether its normalisation is fixed, so that no contender spends time on measuring grey values.
    """
    plain, frame = untrained(base, depth, seed), drawn_frame(PROBED, 1)
    if fixed:
        plain = replace(plain, normalisation=plain.normalisation.frozen([frame[None]]))
    scores = whole_frame_scores(plain, frame)
    bias = plain.weights[LAST_BIAS].copy()
    bias[1] += np.median(scores[0] - scores[1])
    return replace(plain, weights={**plain.weights, LAST_BIAS: bias})


def write_model(checkpoint: Checkpoint, options: Options, path: Path) -> None:
    """Write an ONNX file without the parity gate, which takes minutes: the labels are checked before they are timed."""
    onnx.save(build_graph(checkpoint.network(), spec_for(checkpoint, options)), path)
