"""Runs on a real cluster of `dask.distributed`: the same files, whatever becomes of the workers."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import fsspec
import numpy as np
import pytest
import tifffile
from distributed import Client, LocalCluster

import unetrt
from unetrt.runtime import Segmenter
from unetrt.runtime.blockwise import processes, scheduling
from unetrt.runtime.blockwise.run import Blockwise, predict_blocks
from unetrt.runtime.errors import BackendUnavailableError, FrameError, InferenceError, OptionError, OutputError
from unetrt.runtime.files.images import Output, predict_file
from unetrt.runtime.files.outputs import opened_outputs
from unetrt.runtime.machine import cores
from unetrt.runtime.model.onnx_file import resolved

MODEL = resolved("nuclei")
KINDS = ["labels", "geojson", "table"]
ENGINE = {"backend": "onnxruntime"}


@contextmanager
def local_cluster(workers, **options):
    with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def nuclei():
    with Segmenter(MODEL, **ENGINE) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "mosaic.tif"
    picture = tifffile.imread(MODEL.parent / "examples/images/a7a581e6.tif")
    tifffile.imwrite(path, np.tile(picture, (2, 2))[:560, :610], tile=(256, 256))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, nuclei, image):
    folder = tmp_path_factory.mktemp("whole")
    with opened_outputs(folder, KINDS, channels=1, confident=True) as files:
        predict_file(nuclei, image, Output(files))
    return contents(folder)


def contents(folder):
    """The content of each file by its name, and the pixels of the labels."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert files.pop("mosaic.tif")
    return files | {"labels": tifffile.imread(folder / "mosaic.tif").tobytes()}


def segment(folder, segmenter, image, scheduler, *, model=MODEL, **how):
    """Segment an image in 12 blocks or so on a cluster; return the summary and the content of the files."""
    progress = how.pop("progress", None)
    with opened_outputs(folder, KINDS, channels=1, confident=True) as files:
        how = Blockwise((150, 150), scheduler=scheduler, **how)
        done = predict_blocks(segmenter, model, image, Output(files), how, engine=ENGINE, progress=progress)
    return done, contents(folder)


def records(scratch, stage="classify"):
    """The time in nanoseconds at which the record of each block was written."""
    return {file.name: file.stat().st_mtime_ns for file in (scratch / "records" / stage / "0").iterdir()}


def test_two_workers_give_the_files_of_the_whole_image(tmp_path, cluster, nuclei, image, whole):
    done, found = segment(tmp_path, nuclei, image, cluster.scheduler_address)
    assert found == whole
    assert done.blocks == done.computed > 8


def test_nothing_is_left_in_the_workers_and_on_the_scheduler(tmp_path, cluster, nuclei, image):
    segment(tmp_path, nuclei, image, cluster.scheduler_address)
    with Client(cluster) as client:
        assert client.run(lambda: len(processes._open)) == dict.fromkeys(client.scheduler_info()["workers"], 0)
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0


@pytest.mark.alone
def test_a_worker_that_is_killed_costs_the_blocks_that_it_computes(tmp_path, nuclei, image, whole):
    scratch, seen = tmp_path / "scratch" / "mosaic", {}
    with local_cluster(2) as cluster, Client(cluster) as client:
        workers = list(client.run(os.getpid).values())

        def kill(share):
            if not seen and len(records(scratch)) >= 3:
                seen["killed"] = records(scratch)
                os.kill(workers[0], signal.SIGKILL)
            if share > 0.899 and "end" not in seen:
                seen["end"] = records(scratch)

        done, found = segment(
            tmp_path / "out", nuclei, image, cluster.scheduler_address, scratch=str(scratch.parent), progress=kill
        )
        assert workers[0] not in client.run(os.getpid).values()
    assert found == whole
    assert 3 <= len(seen["killed"]) < done.blocks == len(seen["end"])
    assert seen["killed"].items() <= seen["end"].items()


def test_two_runs_share_a_cluster(tmp_path, cluster, nuclei, image, whole):
    found = {}

    def run(name):
        found[name] = segment(tmp_path / name, nuclei, image, cluster.scheduler_address)[1]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": whole, "b": whole}


# What the workers reach

# A path that leads elsewhere in each process, as a disk that is not shared does.
HERE = Path("/proc/self/cwd")
not_shared = pytest.mark.skipif(not HERE.exists(), reason="needs Linux")


@not_shared
@pytest.mark.parametrize("place", ["{}/scratch", "file://{}/scratch"])
def test_the_model_may_be_on_the_disk_of_the_client_alone(tmp_path, monkeypatch, cluster, nuclei, image, whole, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.onnx").write_bytes(MODEL.read_bytes())
    place, scheduler = place.format(tmp_path), cluster.scheduler_address
    _, found = segment(tmp_path / "out", nuclei, image, scheduler, model=HERE / "own.onnx", scratch=place)
    assert found == whole


@not_shared
def test_an_image_that_workers_cannot_read_is_refused(tmp_path, monkeypatch, cluster, nuclei, image):
    monkeypatch.chdir(image.parent)
    with pytest.raises(FrameError, match=r"worker tcp://\S+ cannot read /proc/self/cwd/mosaic.tif \(No such file"):
        segment(tmp_path, nuclei, HERE / "mosaic.tif", cluster.scheduler_address)
    assert list(tmp_path.rglob("*.tif")) == []
    assert not (tmp_path / ".unfinished").exists()


def test_another_file_of_that_name_is_refused(tmp_path, image):
    assert processes.why_unread({str(image): image.stat().st_size}) is None
    assert processes.why_unread({str(tmp_path): None}) is None
    assert "another file" in processes.why_unread({str(image): 7})


@not_shared
@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        (HERE, {"scratch": "."}, r"cannot write to /proc/self/cwd/\S*: results must be on a disk that all"),
        (None, {"scratch": "/proc/self/cwd/s"}, r"cannot read /proc/self/cwd/s/mosaic .*: give --scratch DIR"),
    ],
)
def test_folders_that_workers_do_not_reach_are_refused(
    tmp_path, monkeypatch, cluster, nuclei, image, place, options, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=message):
        segment((place or tmp_path) / "out", nuclei, image, cluster.scheduler_address, **options)


def test_scratch_in_memory_is_for_threads(tmp_path, cluster, nuclei, image, whole):
    with pytest.raises(OptionError, match="memory of this process: give --scratch a folder"):
        segment(tmp_path / "cluster", nuclei, image, cluster.scheduler_address, scratch="memory://blocks")
    assert segment(tmp_path / "threads", nuclei, image, None, scratch="memory://blocks")[1] == whole
    assert fsspec.filesystem("memory").find("/blocks") == []


@pytest.mark.parametrize("place", ["nosuch://blocks", "hdfs://blocks/a"])
def test_scratch_of_unknown_kind_is_refused(tmp_path, nuclei, image, place):
    with pytest.raises(OptionError, match=rf"{place}/mosaic cannot hold unfinished blocks .*: give a folder, or"):
        segment(tmp_path, nuclei, image, None, scratch=place)


def test_a_worker_of_another_version_is_refused(tmp_path, cluster, nuclei, image):
    with Client(cluster) as client:
        first = next(iter(client.scheduler_info()["workers"]))
        client.run(setattr, processes, "__version__", "0.0.1", workers=[first])
        try:
            with pytest.raises(BackendUnavailableError, match=f"worker {first} has unetrt 0.0.1, and this is"):
                segment(tmp_path, nuclei, image, cluster.scheduler_address)
        finally:
            client.run(setattr, processes, "__version__", unetrt.__version__)
    assert not (tmp_path / ".unfinished").exists()


# Errors of the cluster


def test_no_scheduler_is_an_error(tmp_path, monkeypatch, nuclei, image):
    monkeypatch.setattr(scheduling, "CONNECT", 0.5)
    with pytest.raises(BackendUnavailableError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 s"):
        segment(tmp_path, nuclei, image, "tcp://127.0.0.1:9")
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("address", ["here", "", "http://10.0.0.1:80", "tcp://", "tcp://here", "tcp://here:port"])
def test_an_address_that_is_none_is_an_error(tmp_path, monkeypatch, nuclei, image, address):
    """No client is made for it: one that fails in its constructor waits 20 s at the end of the process."""
    made, create = [], Client.__init__
    monkeypatch.setattr(
        Client, "__init__", lambda self, *given, **named: made.append(1) or create(self, *given, **named)
    )
    with pytest.raises(OptionError, match=rf"--scheduler '{address}' is not an address .*: give tcp://HOST:PORT"):
        segment(tmp_path, nuclei, image, address)
    assert not made
    assert not (tmp_path / ".unfinished").exists()


def test_no_workers_are_an_error(tmp_path, nuclei, image):
    with (
        local_cluster(0) as cluster,
        pytest.raises(BackendUnavailableError, match=r"has no workers: start some with `dask worker`"),
    ):
        segment(tmp_path, nuclei, image, cluster.scheduler_address)


def test_a_block_that_ends_its_workers_is_an_error_in_one_line(tmp_path, nuclei, image):
    def kill(_share):
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        workers.clear()

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), local_cluster(2) as cluster:
        with Client(cluster) as client:
            workers = list(client.run(os.getpid).values())
        with pytest.raises(
            InferenceError, match=r"^1 workers were lost while they computed \w+-\S+, and may lack memory"
        ):
            segment(tmp_path, nuclei, image, cluster.scheduler_address, progress=kill)


def test_a_scheduler_that_is_lost_is_an_error_and_the_run_goes_on_later(tmp_path, capfd, cluster, nuclei, image, whole):
    with local_cluster(1) as lost:

        def close(_share):
            lost.close()

        with pytest.raises(BackendUnavailableError, match="the connection to the Dask scheduler at tcp://.* was lost"):
            segment(tmp_path, nuclei, image, lost.scheduler_address, progress=close)
    assert segment(tmp_path, nuclei, image, cluster.scheduler_address, resume=True)[1] == whole


def test_blocks_wait_for_workers_and_a_warning_says_so(tmp_path, monkeypatch, nuclei, image, whole):
    class Returning(logging.Handler):
        def emit(self, record):
            if "has no workers any more: blocks wait for new ones" in record.getMessage():
                cluster.scale(1)

    def leave(_share):
        if not left:
            left.append(cluster.scale(0))

    left, back = [], Returning()
    monkeypatch.setattr(scheduling, "CHECK", 1)
    logging.getLogger("unetrt").addHandler(back)
    with local_cluster(1) as cluster:
        try:
            assert segment(tmp_path, nuclei, image, cluster.scheduler_address, progress=leave)[1] == whole
        finally:
            logging.getLogger("unetrt").removeHandler(back)


def test_an_interrupt_cancels_the_tasks(tmp_path, cluster, nuclei, image):
    def interrupt(_share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(tmp_path, nuclei, image, cluster.scheduler_address, progress=interrupt)
    with Client(cluster) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0


# The engine of a worker


class FakeBinding:
    def devices(self):
        return (object(), object())


@pytest.fixture
def fake_gpus(monkeypatch):
    """Two GPUs of a machine that has none, and an engine for them."""
    from unetrt.runtime.cuda import driver
    from unetrt.runtime.sessions import BACKENDS, tensorrt

    monkeypatch.setattr(driver, "loaded_binding", FakeBinding)
    monkeypatch.setattr(tensorrt, "probe", lambda device: None)
    return next(one.name for one in BACKENDS if one.gpu)


def test_workers_take_gpus_in_turn(fake_gpus):
    engine = {"backend": fake_gpus, "device": None}
    assert [processes.engine_of(engine, name, 1)["device"] for name in range(4)] == [0, 1, 0, 1]
    assert processes.engine_of(engine, "tcp://10.0.0.1:4711", 1)["device"] is None
    assert processes.engine_of({**engine, "device": 1}, 0, 1)["device"] == 1


def test_an_engine_on_the_cpu_has_the_threads_of_the_worker():
    assert processes.engine_of(ENGINE, 0, 3)["backend_options"] == {"threads": 3}
    given = {**ENGINE, "backend_options": {"threads": "2"}}
    assert processes.engine_of(given, 0, 3)["backend_options"] == {"threads": "2"}


# Speed

LOOP = "import time; begin = time.perf_counter(); sum(range(6 * 10**7)); print(time.perf_counter() - begin)"


def seconds_of_loops(number):
    """The longest time of processes that compute side by side, each on one core."""
    started = [subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE) for _ in range(number)]
    return max(float(process.communicate()[0]) for process in started)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="needs 2 cores")
def test_two_workers_are_faster_than_one_as_far_as_the_cores_allow(tmp_path, nuclei, image):
    """Other processes change the ratio, and what two loops gain, too."""
    large, names = tmp_path / "large.tif", iter("abcdefgh")
    tifffile.imwrite(large, np.tile(tifffile.imread(image), (4, 4)), tile=(256, 256))
    times = {1: [], 2: []}
    with local_cluster(1) as one, local_cluster(2) as two:
        for _ in range(4):  # the first time, workers import what they need
            for number, cluster in ((1, one), (2, two)):
                with opened_outputs(tmp_path / next(names), ["ome-zarr"], channels=1, overlays=False) as files:
                    begin = time.perf_counter()
                    how = Blockwise((560, 560), scheduler=cluster.scheduler_address)
                    predict_blocks(nuclei, MODEL, large, Output(files), how, engine=ENGINE)
                    times[number].append(time.perf_counter() - begin)
        possible = 2 * min(seconds_of_loops(1) for _ in range(3)) / min(seconds_of_loops(2) for _ in range(3))
    ratio = min(times[1][1:]) / min(times[2][1:])
    assert ratio > 0.7 * possible, (times, possible)
