"""Both implementations of the CUDA contract, over the real packages, on a library that stands in for the driver."""

from importlib.util import find_spec

import pytest

from tests import requirements
from tests.runtime.cuda.conftest import python

PACKAGES = {"cuda-python": ("cuda", requirements.CUDA_PYTHON), "pycuda": ("pycuda", requirements.PYCUDA)}
IN_BOTH = (
    "there_and_back",
    "filled",
    "rows",
    "order_across_streams",
    "the_stream_of_another_library",
    "events",
    "kernels",
    "failures_are_named",
    "out_of_memory",
    "without_a_context",
    "another_thread",
    "device",
    "host_program",
    "two_drivers_of_one_device",
    "released_by_another_thread",
    "released_at_exit",
    "chosen_without_the_variable",
)
IN_ONE = (("cuda-python", "graph"), ("pycuda", "no_graphs"), ("pycuda", "host_program_with_pycuda"))
FAILURE_OF_A_GRAPH = {"FAKE_CUDA_FAIL": "cuGraphInstantiate:1:1"}


@pytest.fixture(params=PACKAGES)
def implementation(request):
    return installed(request.param)


def installed(name):
    package, needed = PACKAGES[name]
    if find_spec(package) is None:
        pytest.skip(needed)
    return name


def report_of(case, implementation, libcuda, tmp_path, **variables):
    """Run a case; return what was left over when its process ended."""
    report = tmp_path / "report.txt"
    done = python(
        *("-W", "error", "-m", "tests.runtime.cuda.driver_cases", case),
        libcuda=libcuda,
        UNETRT_CUDA=implementation,
        FAKE_CUDA_REPORT=str(report),
        **variables,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {what: int(count) for what, count in map(str.split, report.read_text().splitlines())}


def assert_nothing_is_left(report):
    retained = report.pop("retained_ever")
    assert retained > 0
    assert not any(report.values()), report


@pytest.mark.parametrize("case", IN_BOTH)
def test_the_contract(fake_libcuda, implementation, case, tmp_path):
    assert_nothing_is_left(report_of(case, implementation, fake_libcuda, tmp_path))


@pytest.mark.parametrize(("name", "case"), IN_ONE)
def test_what_one_alone_does(fake_libcuda, name, case, tmp_path):
    assert_nothing_is_left(report_of(case, installed(name), fake_libcuda, tmp_path))


def test_a_graph_that_cannot_be_made_leaves_nothing(fake_libcuda, tmp_path):
    name = installed("cuda-python")
    report = report_of("a_graph_that_cannot_be_made", name, fake_libcuda, tmp_path, **FAILURE_OF_A_GRAPH)
    assert_nothing_is_left(report)


def test_waiting_lets_others_run(fake_libcuda, implementation, tmp_path):
    report = report_of("waiting_lets_others_run", implementation, fake_libcuda, tmp_path, FAKE_CUDA_WAIT_MS="300")
    assert_nothing_is_left(report)


def test_a_context_that_cannot_be_had_is_not_held(fake_libcuda, implementation, tmp_path):
    report = report_of("a_context_that_cannot_be_had", implementation, fake_libcuda, tmp_path)
    assert not any(report.values())


def test_a_release_that_fails_says_so(fake_libcuda, implementation, tmp_path):
    report_of("a_release_that_fails", implementation, fake_libcuda, tmp_path)


def test_probing_makes_no_context(fake_libcuda, implementation, tmp_path):
    report = report_of("only_probed", implementation, fake_libcuda, tmp_path, FAKE_CUDA_CAPABILITY="8.6,12.0")
    assert report["retained_ever"] == 0


def test_the_report_sees_what_is_left(fake_libcuda, tmp_path):
    report = report_of("leaking", installed("cuda-python"), fake_libcuda, tmp_path)
    assert {what: count for what, count in report.items() if count} == {
        "events": 1,
        "memory": 1,
        "retained": 1,
        "retained_ever": 1,
    }


@pytest.mark.parametrize("case", ["frames_come_out_as_they_went_in", "threads", "left_open"])
def test_lanes(fake_libcuda, implementation, case, tmp_path):
    assert_nothing_is_left(report_of(case, implementation, fake_libcuda, tmp_path))


def test_a_process_that_ends_in_the_middle_of_a_frame_leaves_nothing_on_the_device(
    fake_libcuda, implementation, tmp_path
):
    report = report_of("ended_in_the_middle_of_a_frame", implementation, fake_libcuda, tmp_path)
    # An array that the thread itself was about to free when it was stopped: memory of the host, which goes with it.
    assert report.pop("pinned") <= 1
    assert_nothing_is_left(report)


@pytest.mark.parametrize(
    ("case", "failing"), [("a_call_fails", "cuMemcpyDtoHAsync:1:700"), ("memory_runs_out", "cuMemAlloc:5:2")]
)
def test_lanes_that_fail(fake_libcuda, implementation, case, failing, tmp_path):
    assert_nothing_is_left(report_of(case, implementation, fake_libcuda, tmp_path, FAKE_CUDA_FAIL=failing))
