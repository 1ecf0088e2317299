"""A part of the fuzzer's cases, and whether the fuzzer sees what it looks for."""

import sys

import pytest

from tests.fuzz.__main__ import TROUBLES, fuzz
from tests.fuzz.inputs import CONTROLS, KINDS, case, write_originals

# `make fuzz` runs 10,000.
FEW = 120

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory of a process and its limits are read as on Linux"),
    pytest.mark.timeout(1800),
]


def test_damaged_files_and_odd_options_end_in_a_result_or_one_line(tmp_path):
    # More seconds than `make fuzz` allows: other tests run beside this one.
    report = fuzz(range(FEW), seed="test", findings=tmp_path, limit=60)
    assert len(report.outcomes) == FEW
    assert [(one["case"], one["trouble"], one["fault"]) for one in report.troubles] == []
    # Damage that everything survives, or nothing, would prove little.
    for kind in KINDS:
        refused = [one["status"] != 0 for one in report.outcomes if one["kind"] == kind]
        assert 0.2 < sum(refused) / len(refused) < 0.97, kind


def test_the_fuzzer_sees_what_it_looks_for_and_goes_on(tmp_path):
    report = fuzz([*CONTROLS, 0], seed=0, findings=tmp_path, processes=1, limit=10)
    found = {one["case"]: one["trouble"] for one in report.outcomes}
    assert found == {**{name: name for name in CONTROLS}, "0": None}
    assert set(CONTROLS) == set(TROUBLES)
    kept = {folder.name: sorted(file.name for file in folder.iterdir()) for folder in tmp_path.iterdir()}
    assert kept == {f"0-{name}-{name}": ["arguments.json", "log", "outcome.json"] for name in CONTROLS}


def test_a_case_is_the_same_again(tmp_path):
    write_originals(tmp_path / "originals")

    def made(place, number):
        (tmp_path / place).mkdir(parents=True)
        arguments = case(0, number, tmp_path / "originals", tmp_path / place)
        files = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
        return arguments, [(path.relative_to(tmp_path / place), path.read_bytes()) for path in files]

    for number in range(40):
        assert made(f"one/{number}", number) == made(f"two/{number}", number)
