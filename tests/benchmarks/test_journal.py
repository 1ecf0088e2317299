"""What was measured is on disk, whole, before the next step begins, and is not measured twice."""

import json
import re

import pytest

from unetrt.benchmarks.journal import Journal, Patience
from unetrt.runtime.errors import OptionError

ABOUT = {"network": {"base": 64}, "frame": (96, 130)}


def stored(path):
    return json.loads(path.read_text())


def test_each_result_is_on_disk_before_the_next_step_begins(tmp_path):
    path = tmp_path / "new" / "results.json"
    journal = Journal(path, ABOUT, document=lambda journal: {"count": len(journal.results)})
    journal.take("one", lambda: {"seconds": 1.0})

    def second():
        assert stored(path)["results"] == {"one": {"seconds": 1.0}}
        assert stored(path)["count"] == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        journal.take("two", second)
    assert set(stored(path)["results"]) == {"one"}
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_what_is_there_is_not_measured_again(tmp_path):
    path = tmp_path / "results.json"
    Journal(path, ABOUT).take("one", lambda: 1)
    resumed = Journal(path, ABOUT, Patience(resume=True))
    assert resumed.take("one", lambda: pytest.fail("measured twice")) == 1
    assert resumed.take("two", lambda: 2) == 2
    assert stored(path)["results"] == {"one": 1, "two": 2}


def test_without_resume_everything_is_measured_anew(tmp_path):
    path = tmp_path / "results.json"
    Journal(path, ABOUT).take("one", lambda: 1)
    assert Journal(path, ABOUT).take("one", lambda: 3) == 3
    assert stored(path)["results"] == {"one": 3}


def test_nothing_new_begins_once_the_time_is_up(tmp_path):
    path = tmp_path / "results.json"
    journal = Journal(path, ABOUT, Patience(seconds=1e-9))
    assert journal.take("one", lambda: pytest.fail("begun")) is None
    assert journal.take("two", lambda: pytest.fail("begun")) is None
    assert stored(path)["missing"] == journal.missing == ["one", "two"]
    assert Journal(path, ABOUT, Patience(seconds=3600, resume=True)).take("one", lambda: 1) == 1
    assert stored(path)["missing"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no results to continue from"),
        ("[]", "holds no results to continue from"),
        ('{"about": {}}', "holds no results to continue from"),
        ('{"missing": 1}', "holds no results to continue from"),
        ('{"kind": "unetrt bench", "missing": []}', "is finished: leave --resume out to measure anew"),
        (
            '{"about": {"network": {"base": 64}, "frame": [96, 130]}, "results": []}',
            "holds no results to continue from",
        ),
        ("[" * 200_000, "holds no results to continue from"),
        (
            '{"about": {"network": {"base": 16}, "frame": [96, 130]}, "results": {}}',
            'holds results of another run (network: {"base": 16} there, {"base": 64} here): give another file',
        ),
        ('{"about": null, "results": {}}', "network: null there"),
    ],
)
def test_results_of_anything_else_are_not_taken_up(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=re.escape(message)):
        Journal(path, ABOUT, Patience(resume=True))
    assert path.read_text() == content


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_at_all_measures_nothing(seconds):
    with pytest.raises(OptionError, match="seconds measure nothing: use more than 0"):
        Patience(seconds=seconds)
