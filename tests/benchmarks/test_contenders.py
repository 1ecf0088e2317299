import subprocess
import sys

import numpy as np
import pytest
import torch

from unetrt.benchmarks.contenders import CONTENDERS, DEVICES, REFERENCE
from unetrt.benchmarks.limits import COPY, Limits
from unetrt.benchmarks.networks import drawn_frame, undecided

SIZE = (96, 130)


@pytest.fixture(scope="module")
def checkpoint():
    return undecided(base=2, depth=2)


def test_the_table_is_data():
    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)
    assert names[0] == REFERENCE
    program = (
        "import sys, unetrt.benchmarks.contenders; "
        "print({'torch', 'onnxruntime', 'openvino', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("one", CONTENDERS, ids=lambda one: one.name)
def test_a_contender_can_be_timed_or_says_why_not(one, device):
    reason = one.why_not(device)
    assert reason is None or (len(reason) > 20 and "\n" not in reason)
    if device not in one.devices:
        assert reason == f"it computes on the {one.devices[0].upper()}: --device {one.devices[0]}"
    if device == "gpu" and not torch.cuda.is_available():
        assert reason


def test_limits_are_rates():
    rates = Limits("cpu", (32, 64), ("fp32", "bf16")).rates()
    assert set(rates) == {"matrix product fp32", "matrix product bf16", COPY}
    assert all(rate > 1e6 for rate in rates.values())


def test_an_untrained_network_finds_both_classes(checkpoint):
    from unetrt.trainer.validation import whole_frame_scores

    labels = whole_frame_scores(checkpoint, drawn_frame(SIZE, 1)).argmax(axis=0)
    assert 0.1 < np.mean(labels) < 0.9
