"""Draw docs/augmentation.png: a micrograph with a grid over it, before and after random displacements.

Run with `python docs/augmentation.py [OUT.png]`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unetrt.trainer.augmentation import NONE, Augmentation, coordinates, look_up
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.targets import separation_weights

SIDE = 388
VARIANTS = {
    "before": NONE,
    "displacements on a 3 x 3 grid, sigma 10 px, bicubic": Augmentation(rotation=0, flips=False),
    "with rotation and reflection": Augmentation(),
}


def main(out: Path) -> None:
    """Draw image and weight map, each with a grid, without and with augmentation."""
    drawing = draw((SIDE, SIDE), seed=3)
    grey = drawing.frame / np.percentile(drawing.frame, 99.8)
    lines = np.zeros((SIDE, SIDE), np.float32)
    lines[::32] = lines[:, ::32] = 1
    planes = torch.from_numpy(np.stack([grey, separation_weights(drawing.labels), lines]).astype(np.float32))
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(VARIANTS))
    for column, (title, how) in enumerate(VARIANTS.items()):
        at = coordinates((SIDE, SIDE), torch.full((2,), SIDE / 2 - 0.5), how, torch.Generator().manual_seed(5))
        image, weights, grid = look_up(planes, at, "bilinear").numpy()
        for row, (plane, colours) in enumerate(((image, "gray"), (weights, "magma"))):
            axis = rows[row, column]
            axis.imshow(np.where(grid > 0.4, plane.max() * 0.6, plane), cmap=colours, vmax=(1, 10)[row])
            axis.axis("off")
        rows[0, column].set_title(title, fontsize=9)
    figure.savefig(out, dpi=75)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")))
