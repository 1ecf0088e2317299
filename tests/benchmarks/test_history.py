import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
from click.testing import CliRunner

from tests import requirements
from tests.benchmarks.results_of_bench import RESULT
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.history import HistoryEntry, add, commit_of, keep, read
from unetrt.benchmarks.result import CaseResult, Measure
from unetrt.runtime.errors import OptionError

MEASURE = Measure.of("a frame", "s", Figure.of([2.0, 1.0, 4.0]), goal=3.0)
RECORD = CaseResult("2026-01-01T00:00:00+00:00", {"versions": {"unetrt": "1"}}, "some", "Something.", (MEASURE,))
RUN = HistoryEntry("some", "2026-01-01T00:00:00+00:00", None, "abc", "P", (replace(MEASURE, rounds=()),))

ADDS = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tests.benchmarks.test_history import RUN
from unetrt.benchmarks.history import add
(Path(sys.argv[1]).parent / sys.argv[2]).touch()
while len(list(Path(sys.argv[1]).parent.glob("process *"))) < 2:
    time.sleep(0.001)
for number in range(20):
    assert add(replace(RUN, name=f"{sys.argv[2]} {number}"), Path(sys.argv[1]))
"""
DIES = """
import os, sys
from pathlib import Path
from tests.benchmarks.test_history import RUN
from unetrt.benchmarks.history import add
os.fsync = lambda _: os._exit(9)
add(RUN, Path(sys.argv[1]))
"""


def python(program, *arguments):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], cwd=Path(__file__).parents[2])


def test_a_run_comes_back_without_its_rounds(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read(path) == []
    assert add(RUN, path)
    assert add(replace(RUN, when="later", version="2", commit=None), path)
    first, second = read(path)
    assert first == RUN
    assert (first.figures[0].rounds, first.figures[0].taken, first.processor) == ((), 3, "P")
    assert (second.when, second.version, second.commit) == ("later", "2", None)


def test_a_run_is_added_once(tmp_path):
    path = tmp_path / "history.jsonl"
    assert [add(RUN, path), add(RUN, path), add(replace(RUN, name="other"), path)] == [True, False, True]
    assert [run.name for run in read(path)] == ["some", "other"]


def test_a_record_is_kept_with_its_line(tmp_path):
    keep(RECORD, tmp_path / "some.json")
    assert CaseResult.load(tmp_path / "some.json") == RECORD
    (run,) = read(tmp_path / "history.jsonl")
    assert (run.name, run.when, run.version, run.figures[0].median) == ("some", RECORD.when, "1", 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "some.json"]


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    names = ("process 1", "process 2")
    both = [python(ADDS, path, name) for name in names]  # each waits until the other has started
    assert [process.wait(60) for process in both] == [0, 0]
    told = [run.name for run in read(path)]
    assert len(told) == 40
    for name in names:
        assert [one for one in told if one.startswith(name)] == [f"{name} {number}" for number in range(20)]


def test_a_process_that_dies_while_it_writes_leaves_no_half_line(tmp_path):
    path = tmp_path / "history.jsonl"
    add(replace(RUN, name="before"), path)
    kept = path.read_bytes()
    assert python(DIES, path).wait(60) == 9
    assert path.read_bytes() == kept
    assert add(RUN, path)
    assert [run.name for run in read(path)] == ["before", "some"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('{"name": "so', "last line of .* is cut off"),
        ('{"name": "some"}\n', "line 2 of .* is invalid"),
        ("[\n", "line 2"),
    ],
)
def test_a_damaged_history_is_left_as_it_is(tmp_path, more, said):
    path = tmp_path / "history.jsonl"
    path.write_text(RUN.line() + more)
    with pytest.raises(OptionError, match=said):
        add(replace(RUN, name="other"), path)
    assert path.read_text() == RUN.line() + more


@pytest.mark.skipif(which("git") is None, reason=requirements.GIT)
def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)

    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    code, results = tmp_path / "code" / "a.py", tmp_path / "benchmarks" / "results" / "a.json"
    for file in (code, results):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    assert commit_of(code) is None
    git("init", "-q")
    assert commit_of(code) is None
    git("add", ".")
    git("commit", "-q", "-m", "a")
    known = git("rev-parse", "--short=10", "HEAD")
    assert commit_of(code) == known
    results.write_text("2")
    assert commit_of(code) == known
    code.write_text("2")
    assert commit_of(code) == f"{known}-dirty"


def test_what_bench_measured_is_added(tmp_path):
    from unetrt.benchmarks.__main__ import main

    RESULT.save(tmp_path / "cpu.json")
    told = [CliRunner().invoke(main, ["history", str(tmp_path / "cpu.json")], catch_exceptions=False) for _ in range(2)]
    assert [("now has" in one.output, one.exit_code) for one in told] == [(True, 0), (False, 0)]
    (run,) = read(tmp_path / "history.jsonl")
    assert (run.name, run.when) == ("cpu", RESULT.when)
    assert {figure.name: (figure.unit, figure.median, figure.taken) for figure in run.figures} == {
        "torch, frame to labels": ("s", 2.0, 3),
        "torch, of matmul fp32": ("x", 0.25, 3),
        "other, frame to labels": ("s", 1.0, 3),
        "other against torch": ("x", 2.0, 3),
    }


def test_another_file_is_refused_in_one_line(tmp_path):
    from unetrt.benchmarks.__main__ import main

    (tmp_path / "old.json").write_text('{"schema": 1}')
    told = CliRunner().invoke(main, ["history", str(tmp_path / "old.json")])
    assert told.exit_code == 2
    assert "not 2 of unetrt bench" in told.output
    assert not (tmp_path / "history.jsonl").exists()
