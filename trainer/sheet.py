"""A sheet of validation images with what the network makes of them, worst first."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.pixels.instances import overlay
from unetrt.trainer.validation import Scores, Validated

# Images on a sheet, in columns of two pictures each: the annotation and what was found.
IMAGES, COLUMNS = 6, 2
# Largest side of a picture, in pixels of the frame.
SIDE = 512


def draw(path: Path, results: Sequence[Validated]) -> None:
    """Write a PNG of up to 6 images from the worst to the best, each beside its annotation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = sorted(results, key=lambda result: Scores.of(result.tally).decisive)
    chosen = [ranked[index] for index in np.unique(np.linspace(0, len(ranked) - 1, IMAGES).round().astype(int))]
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for result, (left, right) in zip(chosen, axes.reshape(-1, 2), strict=False):
        frame = result.image.frame[:, :SIDE, :SIDE]
        for axis, labels in ((left, result.image.labels), (right, result.labels)):
            axis.imshow(overlay(frame, labels[:SIDE, :SIDE]), interpolation="nearest")
        left.set_title(f"{result.image.name}: annotation", fontsize=7, loc="left", parse_math=False)
        right.set_title(str(Scores.of(result.tally)), fontsize=7, loc="left", parse_math=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130)
