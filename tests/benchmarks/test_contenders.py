"""The table of contenders, and each of them: what it computes, and how it is timed in its process."""

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from tests.benchmarks.sleepers import ABOUT, contender
from unetrt.benchmarks import processes
from unetrt.benchmarks.contenders import CONTENDERS, MOST, REFERENCE, BenchJob, Ready, check, time_round, timed
from unetrt.benchmarks.decoding import drawn_classes
from unetrt.benchmarks.networks import drawn_frame, undecided, untrained, write_model
from unetrt.benchmarks.ours import ready as ours
from unetrt.benchmarks.processes import fresh
from unetrt.benchmarks.result import OBJECTS, PREDICT, SEGMENT, WAYS
from unetrt.benchmarks.torch_contenders import UsualLoop, planned_tiles, usual_loop
from unetrt.export.exporter import Options
from unetrt.runtime.errors import InferenceError
from unetrt.runtime.segment.segmenter import LANES
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

SIZE = (300, 420)
NAMED = {one.name: one for one in CONTENDERS}


@pytest.fixture(scope="module")
def checkpoint():
    return undecided(base=2, depth=2)


def test_the_table_is_data():
    """Neither the table nor unetrt's own contender imports torch, which would count towards its memory."""
    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)
    assert names[0] == REFERENCE
    program = (
        "import sys, unetrt.benchmarks.contenders, unetrt.benchmarks.ours; "
        "print({'torch', 'onnxruntime', 'openvino', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_contender_for_another_device_says_so():
    assert NAMED["tensorrt"].why_not("cpu") == "it computes on the GPU: --device gpu"
    assert NAMED["openvino"].why_not("gpu") == "it computes on the CPU: --device cpu"


def test_an_untrained_network_finds_both_classes(checkpoint):
    labels = whole_frame_scores(checkpoint, drawn_frame((96, 130), 1)).argmax(axis=0)
    assert 0.1 < np.mean(labels) < 0.9


def test_one_tile_of_it_is_the_network():
    """On a frame of one core, the usual loop is a plain pass over the padded frame."""
    checkpoint = untrained(base=2, depth=4)
    frame = np.random.default_rng(0).integers(0, 4000, (388, 388)).astype(np.uint16)
    padded = np.pad(checkpoint.normalisation(frame[None]), [(0, 0), (92, 92), (92, 92)], mode="reflect")
    with torch.inference_mode():
        expected = checkpoint.network()(torch.from_numpy(padded[None]))[0].argmax(dim=0).numpy()
    loop = UsualLoop(checkpoint.network(), checkpoint.normalisation)
    np.testing.assert_array_equal(loop(frame), expected)
    assert loop(frame[:100, :50]).shape == (100, 50)


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    """The folder of a job, as it is before its contenders write into it."""
    job = BenchJob(tmp_path_factory.mktemp("job"))
    checkpoint.save(job.checkpoint)
    job.write_frame(drawn_frame(SIZE, 1))
    for precision in ("fp32", "fp16"):
        write_model(checkpoint, Options((204, 252), precision, "labels"), job.model(precision))
    job.write_classes(drawn_classes(SIZE))
    return job.folder


@pytest.fixture
def job(files, tmp_path, monkeypatch):
    """The files of a GPU run; torch computes on the CPU in its place."""
    monkeypatch.setattr(BenchJob, "torch_device", "cpu")
    return BenchJob(shutil.copytree(files, tmp_path / "job"), "gpu")


@pytest.mark.parametrize(
    ("load", "name", "changed"),
    [
        (usual_loop, "torch", {}),
        (usual_loop, "torch-amp", {}),
        (planned_tiles, "torch-planned", {}),
        (planned_tiles, "torch-compile", {"compiled": False}),
        (ours, "tensorrt", {"backend": "onnxruntime"}),
    ],
)
def test_labels_are_the_networks(job, checkpoint, load, name, changed):
    loaded = load(job, replace(NAMED[name], **changed))
    labels = loaded.ways[SEGMENT]()
    assert (labels.shape, labels.dtype) == (SIZE, np.uint8)
    truth = whole_frame_scores(checkpoint, drawn_frame(SIZE, 1))
    height, width = loaded.about.right_within
    assert wrong_pixels(labels[:height, :width], truth[:, :height, :width]) < 0.05
    assert loaded.about.tiles >= 1
    loaded.ways[OBJECTS]()


def test_all_of_ours_runs_and_tells_its_phases(job):
    loaded = ours(job, replace(NAMED["tensorrt"], backend="onnxruntime"))
    assert set(loaded.ways) == set(WAYS)
    for run in loaded.ways.values():
        run()
    told = loaded.phases()
    assert (*told,)[:: len(told) - 1] == ("read", "write")
    assert min(told["read"], told["compute"], told["stitch"], told["write"]) > 0
    assert loaded.about.engine == "onnxruntime on the CPU"
    assert loaded.about.tiles == 2 * 2 > LANES


def test_half_precision_on_a_gpu_and_bfloat16_on_a_cpu():
    assert [NAMED["torch-amp"].precision_on(device) for device in ("cpu", "gpu")] == ["bf16", "fp16"]


def test_a_contender_is_checked_and_timed_in_its_own_process(tmp_path):
    job = BenchJob(tmp_path, enough=0.5)
    about, labels = fresh(check, contender("sleeper"), job)
    assert about == ABOUT
    np.testing.assert_array_equal(labels, np.full((96, 130), 7))
    found = fresh(time_round, contender("sleeper"), job)
    assert min(found.seconds[PREDICT]) > 3 * min(found.seconds[SEGMENT])
    assert found.phases == {"cut": 0.5}
    assert (found.host_memory or 0) > 1 << 20 or sys.platform != "linux"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failure", "ZeroDivisionError: division by zero"),
        ("dead", "its process died"),
        ("stranger", "FileNotFoundError: "),
    ],
)
def test_a_contender_that_fails_says_how(tmp_path, name, message):
    with pytest.raises(InferenceError, match=message):
        fresh(time_round, contender(name), BenchJob(tmp_path))


@pytest.mark.parametrize(("each", "turns"), [(0.001, MOST), (1.0, 3), (100.0, 1)])
def test_ways_run_in_turn_until_enough_was_timed(each, turns, monkeypatch, tmp_path):
    job = BenchJob(tmp_path, enough=5.0)
    counter = count(step=2.5)
    monkeypatch.setattr(processes, "joules", lambda _: next(counter))
    now, ran = [0.0], []

    def run(way):
        ran.append(way)
        now[0] += each

    ways = {way: (lambda way=way: run(way)) for way in (SEGMENT, PREDICT)}
    found = timed(Ready(ABOUT, ways, lambda: {"cut": now[0]}), job, clock=lambda: now[0])
    assert ran == (1 + turns) * [SEGMENT, PREDICT], "a warm-up, then as many turns as are counted"
    assert found.seconds == {way: pytest.approx([each] * turns) for way in ways}
    assert found.joules == 2.5
    assert turns in (1, MOST) or 2 * each * (turns - 1) < job.enough <= 2 * each * turns


def test_a_round_reads_the_memory_of_a_gpu_before_and_after(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "device_memory", lambda: 700)
    ready = Ready(ABOUT, {SEGMENT: lambda: None})
    for device, taken in (("gpu", 200), ("cpu", None)):
        job = BenchJob(tmp_path, device)
        assert timed(ready, job, used=500, clock=count(step=10.0).__next__).device_memory == taken
