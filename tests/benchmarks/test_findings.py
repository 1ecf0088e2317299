from dataclasses import replace

import pytest

from tests.benchmarks.invented_results import result
from unetrt._exit_codes import exit_code
from unetrt.benchmarks.contenders import CONTENDERS
from unetrt.benchmarks.findings import Floor, FloorError, check_all
from unetrt.runtime.errors import OptionError

RESULT = result()
TORCH, OPENVINO, CUDA = (
    next(one for one in CONTENDERS if one.name == name) for name in ("torch", "openvino", "onnxruntime-cuda")
)


@pytest.mark.parametrize(
    ("text", "first", "other"),
    [
        ("5.4", "unetrt-openvino", "usual"),
        ("unetrt-onnxruntime=2.3", "unetrt-onnxruntime", "usual"),
        (" unetrt-openvino/monai=10 ", "unetrt-openvino", "monai"),
        ("compiled/monai=.5", "compiled", "monai"),
    ],
)
def test_a_floor_that_is_kept_says_by_how_much(text, first, other):
    floor = Floor.parse(text)
    one, against, ratio = floor.ratio(RESULT)
    assert (one.name, against.name) == (first, other)
    said = floor.check(RESULT)
    assert said.startswith(f"{one.title} is {ratio.median:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as fast as")
    assert said.endswith(f"{against.title}; the floor is {floor.least:g}")


def test_all_floors_that_are_missed_are_named():
    with pytest.raises(FloorError, match=r"the floor is 6; .*the floor is 7$"):
        check_all([Floor(6), Floor(1), Floor(7)], RESULT)
    assert len(check_all([Floor(1), Floor(2)], RESULT)) == 2


def test_a_floor_is_not_kept_by_others():
    without = replace(RESULT, contenders=tuple(one for one in RESULT.contenders if "unetrt" not in one.name))
    with pytest.raises(OptionError, match="no engine of unetrt was timed"):
        Floor(0.1).check(without)


def test_a_floor_that_is_missed_fails_the_gate():
    with pytest.raises(FloorError, match=r"bf16 is 5\.5. times .*; the floor is 6") as caught:
        Floor.parse("6").check(RESULT)
    assert exit_code(caught.value) == 1


@pytest.mark.parametrize("text", ["", "fast", "a=b", "a/b/c=1", "=2", "-1", "1e3", "a=2 b=3"])
def test_what_is_no_floor_is_refused(text):
    with pytest.raises(OptionError, match="is not a floor: write 2.6"):
        Floor.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorrt=2", "'tensorrt' of the floor was not timed: there is no NVIDIA driver here.*; these were: usual"),
        ("usual/nobody=2", "'nobody' of the floor was not timed; these were: usual"),
    ],
)
def test_a_floor_of_who_was_not_timed_names_those_that_were(text, message):
    with pytest.raises(OptionError, match=message):
        Floor.parse(text).check(RESULT)


def test_a_floor_that_cannot_be_had_is_refused_before_anything_is_timed():
    Floor.parse("openvino/torch=2").require([TORCH, OPENVINO], "cpu")
    with pytest.raises(OptionError, match="'openvino' of the floor is not among what is timed: torch"):
        Floor.parse("openvino=2").require([TORCH], "cpu")
    with pytest.raises(
        OptionError, match="'onnxruntime-cuda' of the floor cannot be timed here: it computes on the GPU"
    ):
        Floor.parse("onnxruntime-cuda=2").require([TORCH, CUDA], "cpu")
