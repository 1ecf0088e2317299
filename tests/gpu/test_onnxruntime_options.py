"""Options of ONNX Runtime's CUDA provider on the GPU: each set answers as the CPU does, a lane's memory is known."""

import pytest

from tests.gpu.engines import used
from unetrt.export.exporter import Options
from unetrt.export.gate import DEFAULTS, compare
from unetrt.runtime.sessions import BACKENDS, open_session
from unetrt.runtime.sessions.onnxruntime_options import SETS

pytestmark = pytest.mark.gpu

CUDA = "onnxruntime-cuda"
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def usable():
    (backend,) = (one for one in BACKENDS if one.name == CUDA)
    if reason := backend.probe():
        pytest.skip(reason)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [name for name in SETS if SETS[name]])
def test_each_set_answers_as_the_cpu_does(exported, frames, name, precision):
    options = Options((60, 76), precision)
    frame = frames(1, (101, 163))[0]
    with (
        open_session(exported(Options((60, 76))), "onnxruntime") as truth,
        open_session(exported(options), CUDA, backend_options=SETS[name]) as session,
    ):
        parity = compare(truth, session, [frame[None]])
    assert parity.misses(DEFAULTS[precision]) == [], str(parity)


def test_a_lane_takes_what_was_measured(exported):
    with open_session(exported(Options((60, 76), "fp16", head="labels", input="uint16")), CUDA) as session:
        own, staging = session.own_memory(), session.spec.tensors().nbytes
        first = session.lanes(1)  # libraries load what they keep
        before = used()
        more = session.lanes(3)
        assert abs(used() - before - 3 * (own + staging)) < 3 * max(own // 4, 32 * MIB)
        assert len(first) + len(more) == 4
