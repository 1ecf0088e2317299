"""`unetrt live`, with real files, the real core of Micro-Manager, a real terminal and a real Ctrl-C."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import tifffile
import zarr

from tests import requirements
from tests.conftest import small_spec
from unetrt.__main__ import main
from unetrt.runtime import LiveSegmenter, Segmenter
from unetrt.runtime.geometry.planner import best_tile
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.sessions.cpu import CropSession
from unetrt.runtime.sessions.retile import kept
from unetrt.trainer.drawn_cells import draw

TITLE = "{} -> tiny.onnx, openvino on the CPU, float32, policy {}\n"
SIZES = {"a": (60, 70), "b": (90, 64), "c": (41, 100)}


MICRO_MANAGER = pytest.mark.skipif(
    not all(map(find_spec, ("pymmcore_plus", "mm_test_adapters"))),
    reason=requirements.MICRO_MANAGER,
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Drawn cells: three files of different sizes and a stack of three frames."""
    folder = tmp_path_factory.mktemp("cells")
    for seed, (name, size) in enumerate(SIZES.items()):
        tifffile.imwrite(folder / f"{name}.tif", draw(size, seed=seed).frame, photometric="minisblack")
    stack = np.stack([draw((64, 64), seed=seed).frame for seed in range(3)])
    tifffile.imwrite(folder / "stack.tif", stack, photometric="minisblack")
    return folder


@pytest.fixture
def run(tiny_model, capsys):
    """Run `unetrt live` on the tiny model; return exit status, standard output, and standard error without progress."""

    def run(*arguments):
        status = main(["live", str(tiny_model), *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, without_progress(err)

    return run


def without_progress(err):
    """Remove the line every five seconds, which fast runs do not print."""
    return re.sub(r"^\d+ s; .*\n", "", err, flags=re.MULTILINE)


def started(tiny_model, *arguments, **pipes):
    command = [sys.executable, "-m", "unetrt", "live", tiny_model, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **pipes)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)


def test_the_tile_is_planned_for_the_size_of_the_frames(run, tiny_model, cells, tmp_path):
    replay = ("--replay", cells, "--fps", 0)
    assert run(*replay, "--save", tmp_path / "own")[0] == 0
    before = kept()
    assert run(*replay, "--frame-size", "131x200", "--save", tmp_path / "planned")[0] == 0
    (file,) = set(kept()) - set(before)
    spec = read_spec(file)
    assert spec.tile == best_tile([(131, 200)], spec.shape).tile
    for path in (tmp_path / "own").iterdir():
        assert (tmp_path / "planned" / path.name).read_bytes() == path.read_bytes()
    status, _, err = run(*replay, "--frame-size", "0x5")
    assert (status, "'0x5' is not a size" in err) == (2, True)


def test_a_replay_writes_what_predict_writes(run, tiny_model, cells, tmp_path):
    status, out, err = run("--replay", cells, "--fps", 0, "--save", tmp_path / "live")
    assert (status, err) == (0, TITLE.format("4 files", "block"))
    assert out.startswith("6 frames: 6 segmented\n")
    assert f"4 label files -> {tmp_path / 'live'}" in out
    assert main(["predict", str(tiny_model), str(cells), "-o", str(tmp_path / "files"), "--no-overlays"]) == 0
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == ["a.tif", "b.tif", "c.tif", "stack.tif"]
    assert sorted(path.name for path in (tmp_path / "live").iterdir()) == names
    for name in names:
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()


def test_frames_that_come_too_fast_are_dropped_and_counted(run, cells, tmp_path):
    status, out, _ = run("--replay", cells, "--fps", 1e6, "--loop", "--frames", 400, "--policy", "latest")
    came, done, dropped = map(int, re.match(r"(\d+) frames: (\d+) segmented, (\d+) dropped\n", out).groups())
    assert status == 0
    assert came == done + dropped == 400
    assert done > 0
    assert dropped > 0


def test_classes_are_written_without_objects(run, cells, tmp_path):
    status, out, _ = run("--replay", cells / "a.tif", "--fps", 0, "--as", "classes", "--save", tmp_path / "live")
    assert status == 0
    assert "object" not in out
    assert tifffile.imread(tmp_path / "live" / "a.tif").max() <= 1


def test_a_run_ends_after_seconds(run, cells):
    begin = time.monotonic()
    status, out, _ = run("--replay", cells, "--loop", "--seconds", 1, "--normalisation", "running", "--queue", 1)
    assert status == 0
    assert re.match(r"\d+ frames?: \d+ segmented", out)
    assert time.monotonic() - begin >= 1


def test_unreadable_files_and_bad_frames_are_named(run, cells, tmp_path):
    nan = np.full((64, 64), np.nan, np.float32)
    tifffile.imwrite(tmp_path / "nan.tif", nan, photometric="minisblack")
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "z.tif").write_bytes((cells / "a.tif").read_bytes())
    status, out, err = run("--replay", tmp_path, "--fps", 0, "--save", tmp_path / "out")
    assert status == 2
    assert out.startswith("2 frames: 1 segmented, 1 failed\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.tif"]
    assert err.splitlines()[1].startswith("Error: 1 of 2 frames failed; the last: FrameError: 4096 pixels are NaN")
    (tmp_path / "nan.tif").unlink()
    status, out, err = run("--replay", tmp_path, "--fps", 0)
    assert status == 2
    assert re.search(r"^Error: \S+text.tif cannot be read", err, re.MULTILINE)


def test_labels_that_cannot_be_written_are_an_error(run, cells, tmp_path):
    (tmp_path / "out" / "b.tif").mkdir(parents=True)
    status, out, err = run("--replay", cells, "--fps", 0, "--save", tmp_path / "out")
    assert status == 2
    assert "3 label files" in out
    assert len(err.splitlines()) == 2
    assert re.search(r"Error: labels were lost 1 time; last error: OutputError: \S+b.tif is a folder", err)


CASES = {
    "no source": ("", "give either --config FILE, for a camera, or --replay FOLDER"),
    "two sources": ("--config MMConfig_demo.cfg --replay good", "give either --config FILE"),
    "a loop of a camera": ("--config MMConfig_demo.cfg --loop", "--loop has no effect without --replay"),
    "a rate of a camera": (
        "--config MMConfig_demo.cfg --fps 5",
        "--fps has no effect without --replay: leave out --fps",
    ),
    "any rate of a camera": ("--config MMConfig_demo.cfg --fps 0", "--fps has no effect without --replay"),
    "axes of a camera": ("--config MMConfig_demo.cfg --axes YX", "--axes has no effect without --replay"),
    "a channel of a camera": ("--config MMConfig_demo.cfg --channel 0", "--channel has no effect without --replay"),
    "a series of a camera": ("--config MMConfig_demo.cfg --series 0", "--series has no effect without --replay"),
    "a part of a camera": ("--config MMConfig_demo.cfg --select T=0", "--select has no effect without --replay"),
    "chunks of a camera": (
        "--config MMConfig_demo.cfg --missing-chunks fill",
        "--missing-chunks has no effect without --replay",
    ),
    "memory of a camera": (
        "--config MMConfig_demo.cfg --max-image-memory 1GB",
        "--max-image-memory has no effect without --replay",
    ),
    "any port of nothing": ("--replay good --port 0", "--port has no effect without --view"),
    "an exposure of files": ("--replay good --exposure 10", "--exposure has no effect without --config"),
    "a port of nothing": ("--replay good --port 8000", "--port has no effect without --view"),
    "a token of nothing": ("--replay good --no-token", "--no-token has no effect without --view"),
    "as fast as possible, and not": ("--replay good --fps 0 --policy latest", "leave out --policy, or give"),
    "an endless rate": ("--replay good --fps inf", "--fps: 'inf' is not valid: use a decimal number from 0"),
    "a time that is none": (
        "--replay good --seconds nan",
        "--seconds: 'nan' is not valid: use .* above 0",
    ),
    "no files": ("--replay none", "none does not exist: give a folder"),
    "an empty folder": ("--replay empty", "empty holds no image"),
    "no configuration": ("--config none.cfg", "none.cfg does not exist"),
    "a configuration without a camera": ("--config empty.cfg", "empty.cfg names no camera"),
    "a configuration of devices that are not there": ("--config odd.cfg", "odd.cfg does not load: .*NoLibrary"),
    "no policy": ("--replay good --policy oldest", "'oldest' is not one of"),
    "no queue": ("--replay good --queue 0", "invalid queue capacity 0"),
    "a queue of the newest": ("--replay good --queue 3", "policy latest queues 1 frame, not 3"),
    "no backend": ("--replay good --backend tpu", "is unknown: use one of auto"),
    "no frames": ("--replay good --frames 0", "'0' is not valid: use a whole number from 1"),
    "over an image": ("--replay images --save images/a.ome.zarr --overwrite", "a.ome.zarr is an input and would be"),
    "over the images": ("--replay good --save good", "is an input and would be overwritten"),
    "into a file": ("--replay good --save text", "cannot write to text: .*not a folder"),
    "into a folder that looks like a file": ("--replay good --save out.tif", "name it out, or one store out.ome.zarr"),
    "again and again": ("--replay good --save out --loop", "leave out --loop or --save"),
    "sizes that one file cannot hold": (
        "--replay sizes --save l.ome.zarr",
        "a.tif and b.tif have 60 x 70 and 90 x 64 pixels, and l.ome.zarr holds one size: name a folder, l,",
    ),
    "a file that is there": ("--replay good --save there.ome.zarr", "exists: give another name, remove it, or ask"),
    "to replace nothing": ("--replay good --overwrite", "--overwrite has no effect without --save"),
    "a camera into a folder": ("--config MMConfig_demo.cfg --save out", "name a store that ends in .ome.zarr"),
    "into a TIFF, frame by frame": (
        "--replay good --save l.ome.tiff",
        "'l.ome.tiff': name them l.ome.zarr, and convert them afterwards: unetrt convert l.ome.zarr -o DIR",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_bad_input_is_one_line(run, cells, tmp_path, monkeypatch, arguments, message):
    for folder in ("good", "empty", "sizes", "there.ome.zarr", "images"):
        (tmp_path / folder).mkdir()
    for file in ("good/a.tif", "sizes/a.tif", "sizes/b.tif"):
        (tmp_path / file).write_bytes((cells / Path(file).name).read_bytes())
    zarr.save_array(tmp_path / "images" / "a.ome.zarr", np.ones((40, 30), np.uint8))
    (tmp_path / "text").write_text("a file")
    (tmp_path / "empty.cfg").write_text("# nothing\n")
    (tmp_path / "odd.cfg").write_text("Device,Camera,NoLibrary,NoCamera\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(*arguments.split())
    assert status == 2, (out, err)
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert re.search(f"^Error: .*{message}", err), err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_work_is_refused_before_the_model_is_loaded(cells, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no image")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["--replay", cells, "--save", cells], "would be overwritten"),
            (["--replay", cells, "--view", "--port", port], f"port {port} of 127.0.0.1: .*in use"),
            (["--replay", tmp_path / "text.onnx"], "text.onnx is not an image"),
        ):
            assert main(["live", str(tmp_path / "none.onnx"), *map(str, arguments)]) == 2
            assert re.search(message, capsys.readouterr().err)


@MICRO_MANAGER
def test_devices_that_are_not_installed_are_named_with_what_installs_them(run, monkeypatch):
    monkeypatch.setattr("pymmcore_plus.find_micromanager", lambda: None)
    status, _, err = run("--config", "none.cfg")
    assert status == 2
    assert "mmcore install, or pip install mm-test-adapters" in err


def test_a_file_that_is_cut_short_is_named_where_labels_go_into_one_file(run, cells, tmp_path):
    (tmp_path / "a.tif").write_bytes((cells / "a.tif").read_bytes())
    (tmp_path / "b.tif").write_bytes(b"II")
    status, out, err = run("--replay", tmp_path, "--fps", 0, "--save", tmp_path / "l.ome.zarr")
    assert (status, out.splitlines()[0]) == (2, "1 frame: 1 segmented")
    assert re.search(r"^Error: \S+b.tif cannot be read", err, re.MULTILINE)


def test_overwrite_replaces_a_file_of_labels(run, cells, tmp_path):
    for _ in range(2):
        where = tmp_path / "l.ome.zarr"
        assert run("--replay", cells / "a.tif", "--fps", 0, "--save", where, "--overwrite")[0] == 0
    assert {"l.csv", "l.ome.zarr"} <= {path.name for path in tmp_path.iterdir()}


def test_an_interrupt_that_an_import_swallows_is_not_lost(run, cells, monkeypatch):
    def opened(*_, **__):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)  # interrupted
        return LiveSegmenter(Segmenter(CropSession(small_spec())))

    monkeypatch.setattr("unetrt.runtime.LiveSegmenter", opened)
    assert run("--replay", cells) == (130, "", "\nstopped by the user\n")


def test_the_live_command_imports_no_trainer():
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'unetrt.trainer']))\n"
    code = "import unetrt.cli.live, unetrt.live_view.browser, unetrt.live_view.saving, unetrt.live_view.terminal"
    subprocess.run([sys.executable, "-c", block + code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("pymmcore_plus", ["--config", "MMConfig_demo.cfg"], "acquire"), ("uvicorn", ["--replay", "x", "--view"], "view")],
)
def test_a_missing_package_names_the_extra(run, monkeypatch, package, arguments, extra):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run(*arguments)
    assert (status, err) == (2, f"Error: this needs {package}: pip install 'unetrt[{extra}]'\n")


@pytest.mark.parametrize("ends", [True, False])
def test_ctrl_c_leaves_complete_files_and_a_summary(tiny_model, cells, tmp_path, ends):
    (tmp_path / "many").mkdir()
    for number in range(200):
        (tmp_path / "many" / f"{number}.tif").symlink_to(cells / "a.tif")
    how = ["--save", tmp_path / "out"] if ends else ["--loop"]
    process = started(tiny_model, "--replay", tmp_path / "many", "--fps", 20, *how)
    assert process.stderr.readline() == TITLE.format("200 files", "latest")
    if ends:
        wait_until((tmp_path / "out").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, without_progress(err)) == (130 if ends else 0, "")
    assert re.match(r"\d+ frames?: \d+ segmented", out)
    written = list((tmp_path / "out").glob("*"))
    assert bool(written) == ends
    assert {tifffile.imread(path).shape for path in written} <= {SIZES["a"]}


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is POSIX's")
def test_at_a_terminal_the_view_is_drawn_in_place_and_taken_away(tiny_model, cells):
    import pty

    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "unetrt",
        "live",
        str(tiny_model),
        "--replay",
        str(cells),
        "--loop",
        "--seconds",
        "2",
    ]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", "LINES": "30"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment) as process:
        os.close(theirs)
        drawn = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.stdout.read().count("frames: ") == 1
    os.close(ours)
    assert process.returncode == 0
    assert "\x1b[1A" in drawn  # cursor up: redrawn in place
    assert drawn.count("Ctrl-C ends it") > 3
    assert TITLE.format("4 files", "latest").strip() in drawn


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other end was closed
        return b""


@MICRO_MANAGER
def test_a_number_of_images_of_the_demo_camera(tiny_model):
    process = started(tiny_model, "--config", "MMConfig_demo.cfg", "--exposure", 5, "--frames", 5, "--policy", "block")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0  # and no thread of the core aborted the process
    assert without_progress(err) == TITLE.format("Camera of MMConfig_demo.cfg", "block")
    assert re.match(r"5 frames: 5 segmented", out)


TWO_CAMERAS = """
Device,Camera-1,DemoCamera,DCam
Device,Camera-2,DemoCamera,DCam
Device,Both,Utilities,Multi Camera
Property,Core,Initialize,1
Property,Both,Physical Camera 1,Camera-1
Property,Both,Physical Camera 2,Camera-2
"""


@MICRO_MANAGER
@pytest.mark.parametrize("camera", ["Camera-2", "Both"])
def test_the_camera_of_a_configuration_with_several_is_named(run, tmp_path, camera):
    (tmp_path / "two.cfg").write_text(TWO_CAMERAS)
    labels = tmp_path / "labels.ome.zarr"
    arguments = ("--exposure", 10, "--frames", 6, "--policy", "block", "--save", labels)
    status, out, err = run("--config", tmp_path / "two.cfg", "--camera", camera, *arguments)
    assert (status, f"{camera} of two.cfg" in err) == (0, True), err
    assert re.match(r"6 frames: 6 segmented", out)
    assert labels.is_dir()


@MICRO_MANAGER
def test_a_configuration_with_several_cameras_says_which(run, tmp_path):
    (tmp_path / "two.cfg").write_text(TWO_CAMERAS + "Property,Core,Camera,\n")
    status, _, err = run("--config", tmp_path / "two.cfg", "--frames", 1)
    message = "names no camera: give --camera Camera-1 or Camera-2 or Both\n"
    assert (status, err) == (2, f"Error: {tmp_path / 'two.cfg'} {message}")
    status, _, err = run("--config", tmp_path / "two.cfg", "--camera", "Camera-3")
    assert (status, err) == (2, "Error: no camera has the label 'Camera-3': use Camera-1 or Camera-2 or Both\n")


@MICRO_MANAGER
def test_a_camera_that_stops_in_mid_run_is_one_line(run, monkeypatch):
    from unetrt.live_view import sources

    seen = []

    class Seen(sources.Camera):
        def feed(self, live, stop):
            seen.append((self.core, live))
            super().feed(live, stop)

    def stop_it():
        wait_until(lambda: seen and seen[0][1].status().done)
        seen[0][0].stopSequenceAcquisition()

    monkeypatch.setattr(sources, "Camera", Seen)
    thread = threading.Thread(target=stop_it)
    thread.start()
    status, out, err = run("--config", "MMConfig_demo.cfg", "--exposure", 50)
    thread.join()
    assert (status, err.splitlines()[1]) == (1, "Error: Camera of MMConfig_demo.cfg stopped by itself")
    assert re.match(r"\d+ frames?: [1-9]\d* segmented", out)


def test_a_browser_can_follow_a_run(tiny_model, cells):
    # A text browser, which is not opened.
    process = started(tiny_model, "--replay", cells, "--loop", "--view", env={**os.environ, "BROWSER": "true"})
    url = re.fullmatch(r"showing at (http://127.0.0.1:\d+/[\w-]{32}/)\n", process.stdout.readline())[1]
    process.stderr.readline()
    with urlopen(url, timeout=10) as page:
        assert "html" in page.headers["content-type"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, without_progress(err)) == (0, "")
    assert re.match(r"\d+ frames?: \d+ segmented", out)


@MICRO_MANAGER
def test_labels_of_all_frames_in_one_store(run, cells, tmp_path):
    from unetrt.runtime.files.images import read_stack

    frames = ["--replay", cells / "stack.tif", "--fps", 0]
    name = "labels.ome.zarr"
    assert run(*frames, "--save", tmp_path / name)[0] == 0
    assert run(*frames, "--save", tmp_path / "files")[0] == 0
    series = read_stack(tmp_path / name)
    np.testing.assert_array_equal(series, read_stack(tmp_path / "files" / "stack.tif"))
    status, out, err = run(*frames, "--save", tmp_path / name)
    assert (status, out) == (2, "")
    assert f"{tmp_path / name} exists" in err


COMMANDS = re.findall(r"^unetrt live .*$", (Path(__file__).parents[2] / "docs" / "live.md").read_text(), re.MULTILINE)


@MICRO_MANAGER
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_docs_run(tiny_model, cells, tmp_path, monkeypatch, capsys, command):
    (tmp_path / "model.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "images").symlink_to(cells)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 4
    end = ["--frames", "3"] if "--fps 0" not in command else []  # a busy machine may take seconds for a frame
    assert main([*shlex.split(command)[1:], *end]) == 0
    assert re.match(r"\d+ frames?: [1-9]\d* segmented", capsys.readouterr().out)
