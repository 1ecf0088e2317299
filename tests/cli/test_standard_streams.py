"""Standard output that is full, closed or not read any more, and the other two streams."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
FULL = "Error: cannot write to standard output: No space left on device\n"
CLOSED = "Error: cannot write to standard output: Bad file descriptor\n"


@pytest.fixture
def shell(tmp_path):
    """Run a line of a shell, in which `$unetrt` is the program, and return its exit code, output and errors."""

    def run(line, **variables):
        environment = {"unetrt": f"{sys.executable} -m unetrt", **variables}
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("models > /dev/full", FULL),
        ("info $model --json > /dev/full", FULL),
        ("plan 500x500 > /dev/full", FULL),
        ("--help >&-", CLOSED),
        ("info $model --json >&-", CLOSED),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(shell, tiny_model, command, said):
    assert shell(f"$unetrt {command}", model=tiny_model) == (2, "", said)


def test_a_command_completes_its_files_all_the_same(shell, tiny_model, drawn_folder, tmp_path):
    line = "$unetrt predict $model $images --tile model -o out > /dev/full"
    assert shell(line, model=tiny_model, images=drawn_folder / "images" / "0.tif") == (2, "", FULL)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["0.png", "0.tif", "overlays"]


def test_a_command_ends_in_silence_where_nobody_reads_its_output(shell):
    status, out, err = shell("{ sleep 0.1; $unetrt --help; } | true")
    assert (status, out, err) == (141, "", "")
    status, out, err = shell("{ sleep 0.1; $unetrt plan 500x500; } | true")
    assert (status, out, err) == (141, "", "")


@pytest.mark.parametrize(
    ("command", "status"),
    [("models 2>&-", 0), ("nonsense 2> /dev/full", 2), ("plan 0 2> /dev/full", 2), ("no 2>&-", 2)],
)
def test_errors_that_nobody_can_read_leave_the_exit_code(shell, command, status):
    assert shell(f"$unetrt {command} > out")[0] == status


def test_a_progress_bar_that_cannot_be_shown_ends_nothing(shell, drawn_folder, tmp_path):
    small = "--depth 1 --base 2 --tile 60 --no-export --steps 2"
    status, out, _ = shell(f"$unetrt train $data -o run {small} 2> /dev/full", data=drawn_folder)
    assert (status, "best: " in out) == (0, True)


def test_all_streams_may_be_closed(shell, tiny_model, drawn_folder, tmp_path):
    """What is opened first must not become anybody's standard output."""
    line = "$unetrt predict $model $images --tile model -o out <&- >&- 2>&-"
    assert shell(line, model=tiny_model, images=drawn_folder / "images" / "0.tif") == (2, "", "")
    (tmp_path / "open").mkdir()
    usual = "$unetrt predict $model $images --tile model -o open/out"
    assert shell(usual, model=tiny_model, images=drawn_folder / "images" / "0.tif")[0] == 0
    for name in ("0.tif", "overlays/0.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "open" / "out" / name).read_bytes()
