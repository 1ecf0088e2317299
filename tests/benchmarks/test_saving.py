"""The benchmark of saved files."""

import pytest

from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.saving import SavedFiles
from unetrt.runtime.files.outputs import KINDS


@pytest.mark.alone
def test_each_kind_has_a_time_and_the_goal_for_its_objects():
    result = measure(SavedFiles(side=10), rounds=1)
    assert [figure.name for figure in result.figures] == list(KINDS)
    assert {figure.goal for figure in result.figures} == {0.06}
    assert result.detail == {"frame": [320, 320], "objects": 100}
