import numpy as np
import torch

from unetrt.benchmarks.networks import untrained
from unetrt.benchmarks.usual_loop import UsualLoop


def test_one_tile_of_it_is_the_network():
    """On a frame of one core, the usual loop is a plain pass over the padded frame."""
    checkpoint = untrained(base=2, depth=4)
    frame = np.random.default_rng(0).integers(0, 4000, (388, 388)).astype(np.uint16)
    padded = np.pad(checkpoint.normalisation(frame[None]), [(0, 0), (92, 92), (92, 92)], mode="reflect")
    with torch.inference_mode():
        expected = checkpoint.network()(torch.from_numpy(padded[None]))[0].argmax(dim=0).numpy()
    loop = UsualLoop(checkpoint.network(), checkpoint.normalisation)
    np.testing.assert_array_equal(loop(frame), expected)
    assert loop(frame[:100, :50]).shape == (100, 50)
