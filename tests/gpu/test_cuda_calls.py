"""Both ways to call CUDA, on the real driver: the cases that the fake libcuda runs too, in processes of their own."""

import pytest

from tests.gpu.children import child
from tests.runtime.cuda.workbench import VARIABLE
from unetrt.runtime.cuda.driver import BINDINGS

pytestmark = pytest.mark.gpu

CASES = (
    "there_and_back",
    "filled",
    "rows",
    "order_across_streams",
    "without_a_context",
    "another_thread",
    "host_program",
    "two_drivers_of_one_device",
    "released_by_another_thread",
    "released_at_exit",
    "frames_come_out_as_they_went_in",
    "threads",
    "left_open",
)
IN_ONE = (("cuda-python", "graph"), ("pycuda", "no_graphs"), ("pycuda", "host_program_with_pycuda"))


def run(case, name):
    (implementation,) = (one for one in BINDINGS if one.name == name)
    if reason := implementation.probe():
        pytest.skip(reason)
    done = child("tests.runtime.cuda.driver_cases", case, UNETRT_CUDA=name, **{VARIABLE: "0"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", [one.name for one in BINDINGS])
@pytest.mark.parametrize("case", CASES)
def test_the_contract(name, case):
    run(case, name)


@pytest.mark.parametrize(("name", "case"), IN_ONE)
def test_what_one_alone_does(name, case):
    run(case, name)
