from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests import requirements
from unetrt.benchmarks.contenders import CONTENDERS, BenchJob
from unetrt.benchmarks.networks import untrained
from unetrt.benchmarks.result import SEGMENT
from unetrt.benchmarks.torch_contenders import OVERLAP, WINDOW, padded, require_twin, sliding_window, window_about
from unetrt.runtime.errors import ParityError

# Not imported for it: every process of a run imports this file, and MONAI takes seconds.
pytestmark = pytest.mark.skipif(not find_spec("monai"), reason=requirements.MONAI)

(MONAI,) = (one for one in CONTENDERS if one.name == "monai")


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_twin_is_the_network_where_borders_do_not_reach(depth):
    checkpoint = untrained(base=2, depth=depth)
    twin = padded(checkpoint.network())
    assert twin(torch.zeros(1, 1, 64, 48)).shape == (1, 2, 64, 48)
    require_twin(checkpoint.network(), twin)


def test_another_network_is_no_twin():
    with pytest.raises(ParityError, match="the padded twin's scores differ"):
        require_twin(untrained(base=2, depth=2).network(), padded(untrained(base=2, depth=2, seed=1).network()))


def test_windows_are_counted_as_they_run(tmp_path, monkeypatch):
    checkpoint, ran = untrained(base=2, depth=2), []
    frame = np.random.default_rng(0).integers(0, 999, (900, 530)).astype(np.uint16)
    job = BenchJob(tmp_path)
    checkpoint.save(job.checkpoint)
    job.write_frame(frame)
    loaded = sliding_window(job, MONAI)
    original = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: (ran.append(x.shape), original(self, x))[1])
    labels = loaded.ways[SEGMENT]()
    assert (labels.shape, labels.dtype) == (frame.shape, np.uint8)
    windows = sum(shape[0] for shape in ran if shape[1] == 1 and shape[-1] == WINDOW)
    assert loaded.about == window_about(checkpoint.shape, frame.shape)
    assert windows == loaded.about.tiles == 3 * 2
    assert OVERLAP == 0.5
