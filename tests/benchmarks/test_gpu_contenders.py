"""The contenders as they are loaded for a GPU, with the CPU in its place: precisions, heads and what is checked."""

from dataclasses import replace

import numpy as np
import pytest

from unetrt.benchmarks.contenders import CONTENDERS
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.networks import drawn_frame, undecided, write_model
from unetrt.benchmarks.ours import ready as ours
from unetrt.benchmarks.planned_tiles import ready as planned_tiles
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION
from unetrt.benchmarks.usual_loop import ready as usual_loop
from unetrt.export.exporter import Options
from unetrt.runtime.segment.segmenter import LANES
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

SIZE = (300, 420)
NAMED = {one.name: one for one in CONTENDERS}


@pytest.fixture(scope="module")
def checkpoint():
    return undecided(base=2, depth=2)


@pytest.fixture
def job(checkpoint, tmp_path, monkeypatch):
    """Files as for a GPU, of which torch is told that it is the CPU."""
    monkeypatch.setattr(Job, "torch_device", "cpu")
    job = Job(tmp_path, "gpu")
    checkpoint.save(job.checkpoint)
    job.write_frame(drawn_frame(SIZE, 1))
    for precision in ("fp32", "fp16"):
        write_model(checkpoint, Options((204, 252), precision, "labels"), job.model(precision))
    return job


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


def test_all_of_ours_runs_and_tells_its_phases(job):
    loaded = ours(job, replace(NAMED["tensorrt"], backend="onnxruntime"))
    assert set(loaded.ways) == {SEGMENT, SESSION, PREDICT}
    for run in loaded.ways.values():
        run()
    told = loaded.phases()
    assert (*told,)[:: len(told) - 1] == ("read", "write")
    assert min(told["read"], told["compute"], told["stitch"], told["write"]) > 0
    assert loaded.about.engine == "onnxruntime on the CPU"
    assert loaded.about.tiles == 2 * 2 > LANES


def test_half_precision_on_a_gpu_and_bfloat16_on_a_cpu():
    assert [NAMED["torch-amp"].precision_on(device) for device in ("cpu", "gpu")] == ["bf16", "fp16"]
