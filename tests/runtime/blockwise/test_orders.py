"""Labels and tables do not depend on blocks, on the order of tasks or on the number of workers."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import dask
import numpy as np
import pytest
import tifffile
from dask._task_spec import convert_legacy_graph
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.conftest import small_spec
from unetrt.runtime import Segmenter
from unetrt.runtime.blockwise.run import Blockwise, predict_blocks
from unetrt.runtime.files.images import Output, predict_file
from unetrt.runtime.files.outputs import opened_outputs
from unetrt.runtime.model.onnx_file import resolved
from unetrt.runtime.model.spec import CORE_CLASSES, Decoding
from unetrt.runtime.sessions.cpu import WorkerSession

DECODINGS = {
    "cores": (CORE_CLASSES, Decoding("cores", reach=6, bridge=1, smallest=4, area=5)),
    "components": (("background", "object"), Decoding("components", reach=3, area=3)),
}


class RandomNetwork(WorkerSession):
    """Scores of random weights over a pixel and others up to the halo away, which differ with the place in the tile."""

    def __init__(self, seed: int, how: str) -> None:
        classes, decoding = DECODINGS[how]
        super().__init__(small_spec(classes=classes, decoding=decoding), "random weights")
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(1, 0.4, 3).astype(np.float32) / 3
        self.limits = np.cumsum([0, *np.sort(rng.uniform(0.5, 0.75, len(classes) - 1))]) * self.weights.sum()

    def compute(self, frames, scores):
        halo, (height, width) = self.spec.halo, scores.shape[-2:]
        shifts = ((halo, halo), (halo - 2, halo + 1), (halo + 3, halo))
        seen = [frames[:, 0, down : down + height, right : right + width] for down, right in shifts]
        mixed = sum(weight * part for weight, part in zip(self.weights, seen, strict=True))
        ramp = 0.01 * np.linspace(-1, 1, width, dtype=np.float32)
        for index, limit in enumerate(self.limits):
            scores[:, index] = 10 * (index * mixed - limit) + ramp * index


def blobs(seed, height, width):
    """Return grey blobs of several sizes, (height, width) uint16."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((height, width)), rng.uniform(0.8, 2), mode="reflect")
    return ((smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-6) * 60000).astype(np.uint16)


def in_random_order(seed, graph, keys, pool, **_):
    """A scheduler of Dask that begins a random one of the tasks that are ready, as often as there are workers."""
    tasks, rng, workers = convert_legacy_graph(graph.__dask_graph__()), random.Random(seed), pool._max_workers
    done, running = {}, {}
    with ThreadPoolExecutor(workers) as threads:
        while len(done) < len(tasks):
            waiting = tasks.keys() - running.keys() - done.keys()
            ready = sorted(key for key in waiting if tasks[key].dependencies <= done.keys())
            for key in rng.sample(ready, min(len(ready), workers - len(running))):
                running[key] = threads.submit(tasks[key], {name: done[name] for name in tasks[key].dependencies})
            ended = rng.choice(sorted(running))
            done[ended] = running.pop(ended).result()
    return [done[key] for key in keys]


def losing_workers(graph, keys, **_):
    """A scheduler of Dask that loses each task's worker once, with every second result that the task needs.

    The task has written what it computes, but the scheduler does not know.
    """
    tasks, done = convert_legacy_graph(graph.__dask_graph__()), {}

    def computed(key):
        return tasks[key]({name: done[name] for name in tasks[key].dependencies})

    while len(done) < len(tasks):
        key = next(key for key in tasks if key not in done and tasks[key].dependencies <= done.keys())
        computed(key)
        done.update({lost: computed(lost) for lost in sorted(tasks[key].dependencies)[::2]})
        done[key] = computed(key)
    return [done[key] for key in keys]


def written(folder, segmenter, image, how=None, min_area=0):
    """Segment an image, as a whole or in blocks; return labels, table and outlines."""
    with opened_outputs(folder, ["labels", "table", "geojson"], channels=1, confident=True) as files:
        output = Output(files, min_area=min_area)
        if how is None:
            predict_file(segmenter, image, output)
        else:
            predict_blocks(segmenter, resolved("nuclei"), image, output, how)
    assert not (folder / ".unfinished").exists()
    texts = [(folder / name).read_text() for name in ("objects.csv", "geojson/image.geojson")]
    return tifffile.imread(folder / "image.tif"), *texts


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    how=st.sampled_from(sorted(DECODINGS)),
    size=st.tuples(st.integers(1, 190), st.integers(1, 190)),
    block=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    workers=st.integers(1, 3),
    min_area=st.sampled_from([0, 0, 12, 60]),
)
@example(seed=1, how="cores", size=(150, 170), block=(1, 1), workers=3, min_area=0)
@example(seed=2, how="components", size=(150, 170), block=(1, 60), workers=2, min_area=12)
@example(seed=3, how="cores", size=(1, 150), block=(1, 1), workers=1, min_area=12)
def test_files_are_those_of_the_whole_image(tmp_path_factory, seed, how, size, block, workers, min_area):
    folder = tmp_path_factory.mktemp("orders")
    np.save(image := folder / "image.npy", blobs(seed, *size))
    with RandomNetwork(seed, how) as session, Segmenter(session) as segmenter:
        whole = written(folder / "whole", segmenter, image, min_area=min_area)
        with dask.config.set(scheduler=partial(in_random_order, seed)):
            labels, *texts = written(folder / "blocks", segmenter, image, Blockwise(block, workers), min_area)
    np.testing.assert_array_equal(labels, whole[0])
    assert texts == list(whole[1:])


@pytest.mark.parametrize("how", DECODINGS)
def test_the_random_network_finds_many_objects_that_cross_blocks(tmp_path, how):
    """What the test above is worth."""
    np.save(image := tmp_path / "image.npy", blobs(5, 150, 170))
    with RandomNetwork(5, how) as session, Segmenter(session) as segmenter:
        labels, *_ = written(tmp_path / "whole", segmenter, image)
        side = segmenter.spec.plan((150, 170)).geometry.stride(segmenter.spec.tile[0])
    crossing = np.intersect1d(labels[side - 1][labels[side - 1] > 0], labels[side])
    assert labels.max() > 20
    assert len(crossing) > 1


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_tasks_whose_results_were_lost_are_computed_again(tmp_path, dtype):
    """Also the passes over grey values: one for 16 bits, two for 32 and four for 64."""
    np.save(image := tmp_path / "image.npy", blobs(5, 150, 170).astype(dtype))
    with opened_outputs(tmp_path / "blocks", ["labels"], channels=1) as files, ExitStack() as opened:
        segmenter = opened.enter_context(Segmenter(opened.enter_context(RandomNetwork(5, "cores"))))
        with dask.config.set(scheduler=losing_workers):
            done = predict_blocks(segmenter, None, image, Output(files), Blockwise((64, 64)))
        expected = segmenter.objects(np.load(image)).labels
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "blocks" / "image.tif"), expected)
    assert done.computed == done.blocks > 1
