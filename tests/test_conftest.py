"""tests/conftest.py: the summary of skipped tests, and the division of cores among processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import requirements

REPOSITORY = Path(__file__).parents[1]

SKIPPING = """
import pytest
from tests import requirements

@pytest.mark.parametrize("case", range(3))
def test_in_a_browser(case):
    pytest.skip(requirements.CHROMIUM)

@pytest.mark.skipif(True, reason="only root can make a small disk")
def test_on_a_disk():
    pass

@pytest.mark.xfail(reason="an expected failure is no skip")
def test_that_fails():
    assert False

def test_that_passes():
    pass
"""
WHOLE_FILE = "import pytest\npytest.importorskip('no_such_module', reason='needs it: pip install it')\n"


def end_of_a_run(folder, *options):
    """Return the output lines of a run in `folder` with this suite's conftest."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    fresh = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [*command, f"--rootdir={folder}", *options, folder],
        cwd=REPOSITORY, env=fresh, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


THREADS = """
from unetrt.runtime.machine import cores

def test_threads():
    import torch
    assert torch.get_num_threads() == max(1, cores() // 2)
"""


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["-q"], marks=pytest.mark.slow), ["-n", "2"]],
    ids=["alone", "quiet", "side by side"],
)
def test_skips_are_grouped_by_what_they_need_and_processes_share_the_cores(tmp_path, options):
    (tmp_path / "test_some.py").write_text(SKIPPING)
    if "-n" in options:
        (tmp_path / "test_threads.py").write_text(THREADS)
    (tmp_path / "test_whole.py").write_text(WHOLE_FILE)
    lines = end_of_a_run(tmp_path, *options)
    (title,) = (number for number, line in enumerate(lines) if "5 skipped, and how to run them" in line)
    assert lines[title + 1] == f"3 tests: {requirements.CHROMIUM}"
    assert sorted(lines[title + 2 : title + 4]) == [
        "1 file:  needs it: pip install it",
        "1 test:  only root can make a small disk",
    ]
    assert len(lines) - title < 8, "only pytest's own sums follow"


def test_a_run_that_skips_nothing_says_nothing(tmp_path):
    (tmp_path / "test_some.py").write_text("def test_that_passes(): pass")
    assert not [line for line in end_of_a_run(tmp_path) if "skipped" in line]


def test_the_packages_of_debian_are_those_that_ci_installs():
    (listed,) = re.findall(r"\$\(cat (\S+)\)", requirements.CHROMIUM)
    assert {"chromium", "chromium-driver", "xvfb"} <= set((REPOSITORY / listed).read_text().split())
    assert f"$(cat {listed})" in (REPOSITORY / ".ci" / "run").read_text()
