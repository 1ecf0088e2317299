"""A part of the fuzzer's cases, and whether the fuzzer sees what it looks for."""

import sys

import pytest

from tests.fuzz.__main__ import TROUBLES, fuzz
from tests.fuzz.inputs import CONTROLS, KINDS, case, write_originals

# `make fuzz` runs 10,000.
FEW = 100

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory of a process and its limits are read as on Linux"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    write_originals(folder)
    return folder


def test_damaged_files_and_odd_options_end_in_a_result_or_one_line(originals, tmp_path):
    # More seconds than `make fuzz` allows, and one process: other tests run beside this one.
    report = fuzz(range(FEW), "test", tmp_path, processes=1, limit=60, originals=originals)
    assert len(report.outcomes) == FEW
    assert [(one["case"], one["trouble"], one["fault"]) for one in report.troubles] == []
    # Damage that everything survives, or nothing, would prove little.
    for kind in KINDS:
        refused = [one["status"] != 0 for one in report.outcomes if one["kind"] == kind]
        assert 0.2 < sum(refused) / len(refused) < 0.97, kind


@pytest.mark.parametrize(
    "cases",
    [
        # Each crash and each hang starts a process anew, which takes seconds: one at the end does not.
        ("traceback", "memory", "message", 0, "crash"),
        pytest.param((*CONTROLS, 0), marks=pytest.mark.slow),
    ],
    ids=["one process", "several"],
)
def test_the_fuzzer_sees_what_it_looks_for_and_goes_on(originals, tmp_path, cases):
    report = fuzz(cases, seed=0, findings=tmp_path, processes=1, limit=10, originals=originals)
    controls = [name for name in cases if name != 0]
    found = {one["case"]: one["trouble"] for one in report.outcomes}
    assert found == {**{name: name for name in controls}, "0": None}
    kept = {folder.name: sorted(file.name for file in folder.iterdir()) for folder in tmp_path.iterdir()}
    assert kept == {f"0-{name}-{name}": ["arguments.json", "log", "outcome.json"] for name in controls}


def test_there_is_a_control_for_each_trouble():
    assert set(CONTROLS) == set(TROUBLES)


def test_a_case_is_the_same_again(originals, tmp_path):
    def made(place, number):
        (tmp_path / place).mkdir(parents=True)
        arguments = case(0, number, originals, tmp_path / place)
        files = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
        return arguments, [(path.relative_to(tmp_path / place), path.read_bytes()) for path in files]

    for number in range(40):
        assert made(f"one/{number}", number) == made(f"two/{number}", number)
