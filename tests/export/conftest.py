"""A network for every kind of file."""

from dataclasses import replace

import numpy as np
import pytest

from unetrt.trainer.drawn_cells import draw


@pytest.fixture(scope="session")
def steady(settled_checkpoint):
    """A network for frames of a type, with a normalisation that a graph can do."""

    def of(dtype):
        frames = [draw((96, 110), seed=seed).frame[None] for seed in (7, 8)]
        if dtype == "uint8":
            frames = [(frame // 256).astype(np.uint8) for frame in frames]
        fixed = settled_checkpoint.normalisation.frozen(frames)
        return replace(settled_checkpoint, frames=tuple(frames), normalisation=fixed)

    return of
