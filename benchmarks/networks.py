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

# Size of the frame that balances an untrained network, and the parameters that decide how often it finds a class.
PROBED, LAST_WEIGHT, LAST_BIAS = (256, 256), "classify.weight", "classify.bias"


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


def fitted(base: int, depth: int, seed: int = 3) -> Checkpoint:
    """Return a network that finds bright cells: its last layer is fitted to drawn ones, all others are random.

    A random network finds objects of single pixels, more than there are in any image. The four weights with which a
    pixel is enlarged to 2 x 2 are made equal, as they would draw a grid.
    """
    plain, drawing = untrained(base, depth, seed), draw(PROBED, seed=1)
    even = {
        name: np.broadcast_to(weight.mean((2, 3), keepdims=True), weight.shape).copy()
        for name, weight in plain.weights.items()
        if name.startswith("up.") and weight.ndim == 4
    }
    plain = replace(plain, weights={**plain.weights, **even})
    weight, bias = (np.zeros_like(plain.weights[name]) for name in (LAST_WEIGHT, LAST_BIAS))
    features = [np.ones(drawing.labels.size, np.float32)]
    for channel in range(weight.shape[1]):
        probe = weight.copy()
        probe[1, channel] = 1
        scores = whole_frame_scores(replace(plain, weights={**plain.weights, LAST_WEIGHT: probe}), drawing.frame)
        features.append((scores[1] - scores[0]).ravel())
    cells = np.where(drawing.labels.ravel() > 0, 0.5, -0.5)
    solution = np.linalg.lstsq(np.stack(features, axis=1), cells, rcond=None)[0]
    bias[1], weight[1, :, 0, 0] = solution[0], solution[1:]
    weights = {**plain.weights, LAST_WEIGHT: weight, LAST_BIAS: bias}
    return replace(plain, weights=weights, annotation="instances")


def write_model(checkpoint: Checkpoint, options: Options, path: Path) -> None:
    """Write an ONNX file without the parity gate, which takes minutes: the labels are checked before they are timed."""
    onnx.save(build_graph(checkpoint.network(), spec_for(checkpoint, options)), path)
