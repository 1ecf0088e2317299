"""Nothing leaves the machine: no connection, no look-up of a name, no identifier in the user's folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import compiled_library

pytestmark = pytest.mark.timeout(600)
# All commands that open a model or train one, and those that are given, one after the other; then a pause in seconds.
COMMANDS = """
import sys, time
from pathlib import Path
from unetrt.__main__ import main

wait, data = float(sys.argv[1]), Path(sys.argv[2])
frame = data / "images" / "0.tif"
for line in (
    f"train {data} --depth 2 --base 4 --tile 92 --steps 4 --no-export -o run",
    "export run -o model.onnx --tile 60x76",
    f"predict model.onnx {frame} -o onnxruntime --backend onnxruntime",
    f"predict model.onnx {frame} -o openvino --backend openvino",
    f"predict nuclei {frame} -o nuclei --table",
    f"predict model.onnx {frame} -o blocks --block 1x1 --save ome-zarr --save table",
    f"live model.onnx --replay {frame} --fps 0",
    "retile model.onnx --frame 100x100 -o other.onnx",
    "package model.onnx triton -o served",
    "models",
    "info model.onnx",
    *sys.argv[3:],
):
    status = main(line.split())
    if status:
        raise SystemExit(f"{line}: {status}")
time.sleep(wait)
"""
# It starts six processes, one after the other.
BENCH = "bench --depth 2 --base 4 --frame 100x100 --rounds 1 --only onnxruntime"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    """A library that records connections and look-ups of the process that it is loaded into, native ones too."""
    library = tmp_path_factory.mktemp("recorder") / "recorded_calls.so"
    return compiled_library(library, Path(__file__).with_name("recorded_calls.c"), "-ldl")


@pytest.fixture
def recorded(recorder, tmp_path):
    """Run a program with an empty home; return the process, its calls, and the files that appeared in the home."""

    def run(program, *arguments):
        home, calls = tmp_path / "home", tmp_path / "calls"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
        environment = {**kept, "HOME": str(home), "LD_PRELOAD": str(recorder), "RECORD": str(calls)}
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
        return done, calls.read_text().split("\n")[:-1] if calls.exists() else [], files

    return run


def foreign(files):
    """Those of the files that are neither unetrt's own nor fonts that matplotlib found."""
    return {
        name for name in files if not name.startswith((".cache/unetrt/", ".cache/matplotlib/", ".config/matplotlib/"))
    }


def test_connections_and_names_are_recorded(recorded):
    done, calls, _ = recorded(
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 1)\n"
        "with contextlib.suppress(OSError): socket.gethostbyname('unetrt.invalid')\n"
        "with socket.socket() as listening: listening.bind(('127.0.0.1', 0))\n"
    )
    assert done.returncode == 0, done.stderr
    assert "connect 127.0.0.1" in calls
    assert "getaddrinfo unetrt.invalid" in calls
    assert "bind 127.0.0.1" in calls


def test_no_command_calls_or_leaves_an_identifier(recorded, drawn_folder):
    done, calls, files = recorded(COMMANDS, 0, drawn_folder)
    assert done.returncode == 0, done.stderr
    assert calls == []
    assert foreign(files) == set()


@pytest.mark.slow
def test_nothing_calls_later_and_bench_does_not_either(recorded, drawn_folder):
    """ONNX Runtime waits for 20 seconds before it reports."""
    done, calls, files = recorded(COMMANDS, 60, drawn_folder, BENCH)
    assert done.returncode == 0, done.stderr
    assert calls == []
    assert foreign(files) == set()


def test_a_program_that_embeds_the_runtime_reports_nothing(recorded, tiny_model):
    done, calls, files = recorded(
        "import sys\nfrom unetrt import Segmenter\nimport numpy as np\n"
        "with Segmenter(sys.argv[1], backend='onnxruntime') as segmenter: segmenter.segment(np.zeros((70, 80)))\n",
        tiny_model,
    )
    assert done.returncode == 0, done.stderr
    assert (calls, foreign(files)) == ([], set())


def test_a_choice_of_the_user_is_kept():
    program = "import os, unetrt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        environment |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
