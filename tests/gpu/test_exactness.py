"""A frame in tiles is the frame in one tile, computed on the GPU."""

import numpy as np
import pytest

from unetrt.export.exporter import Options
from unetrt.export.gate import DEFAULTS
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.segment.segmenter import Segmenter

pytestmark = pytest.mark.gpu

# Of networks of depth 2, which the tests train.
GEOMETRY = Geometry.unet(2)
SIZES = ((200, 260), (121, 77))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tiled_is_whole(engine, exported, frames, size, precision):
    """Engines may choose other kernels for another tile: in FP32 they differ by the order of their sums alone."""
    frame = frames(1, size)[0]
    whole = (GEOMETRY.side_for(size[0]), GEOMETRY.side_for(size[1]))
    scores, tiles = {}, {}
    for tile in ((60, 76), whole):
        with Segmenter(exported(Options(tile, precision)), backend=engine) as segmenter:
            scores[tile] = segmenter.scores(frame)
            tiles[tile] = segmenter.segment(frame).timings.tiles
    assert tiles[whole] == 1
    assert tiles[60, 76] > 4
    tiled, one = scores[60, 76], scores[whole]
    if precision == "fp32":
        assert np.abs(tiled - one).max() <= 1e-4 * np.abs(one).max()
    assert (tiled.argmax(axis=0) != one.argmax(axis=0)).mean() <= DEFAULTS[precision].flips


def test_the_natural_stride_would_be_seen(engine, exported, frames):
    """The bound above tells: a frame that lies elsewhere on the lattice has other scores."""
    frame = frames(1, SIZES[0])[0]
    with Segmenter(exported(Options((60, 76))), backend=engine) as segmenter:
        scores, moved = segmenter.scores(frame), segmenter.scores(frame[1:])
    inside = slice(GEOMETRY.halo, -GEOMETRY.halo)
    difference = np.abs(scores[:, 1:][:, inside, inside] - moved[:, inside, inside]).max()
    assert difference > 1e-3 * np.abs(scores).max()
