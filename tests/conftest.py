"""Fixtures and settings that tests share: small specs, drawn cells, tiny trained networks and their exports."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests import requirements
from tests.requirements import lines_about_skips
from unetrt.runtime.machine import cores
from unetrt.runtime.model.spec import ModelSpec

# Fluorescent nuclei with instance labels, in train/ and val/; the environment variable names another copy.
NUCLEI = Path(os.environ.get("UNETRT_NUCLEI", Path(__file__).parents[2] / "shared" / "data" / "nuclei"))

# A GPU host without a network may lack hypothesis and pytest-timeout; the tests for GPUs need neither.
if find_spec("hypothesis"):
    from hypothesis import settings

    # On a shared machine a single example may take long, which is not a failure.
    settings.register_profile("unetrt", deadline=None)
    settings.load_profile("unetrt")


# A background job of a shell script ignores SIGINT, and its children inherit that; some tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    if not find_spec("pytest_timeout"):
        parser.addini("timeout", "read by pytest-timeout where it is installed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Divide the cores among the processes of `-n`: torch would use all of them in each process."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(specs))))


def pytest_terminal_summary(terminalreporter):
    """List the reasons of skipped tests at the end, with the command that installs what is missing.

    With xdist, the reporting process has the reports of all workers.
    """
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.section(f"{len(skipped)} skipped, and how to run them")
        for line in lines_about_skips(skipped):
            terminalreporter.line(line)


def small_spec(depth: int = 2, tile: tuple[int, int] | None = None, **fields) -> ModelSpec:
    """Return a spec with the geometry of a small U-Net; the core of the default tile is larger than the grid."""
    from unetrt.runtime.geometry.unet_shape import UNetShape

    geometry = UNetShape(depth).geometry
    side = geometry.side_for(3 * geometry.grid)
    return ModelSpec(tile=tile or (side, side + geometry.grid), halo=geometry.halo, grid=geometry.grid, **fields)


def coordinate_frame(height: int, width: int) -> np.ndarray:
    """Return a frame (height, width) float32 whose pixels are row * 1000 + column: misplaced ones show their origin."""
    return (np.arange(height)[:, None] * 1000 + np.arange(width)).astype(np.float32)


def editable(path):
    """Return the ONNX model in a file without the digest of its contents, for tests that change it."""
    import onnx

    from unetrt.runtime.model.integrity import DIGEST

    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != DIGEST]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Use a cache folder of the test run, also in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def operators_parsed_once():
    """Keep the ONNX operators that torch knows: for each export it parses the source of all 500, half of its time."""
    # Loaded by the first export of a process.
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(cache(exporter.ONNXRegistry.from_torchlib))


LOG_LEVELS = {None: logging.WARNING, "unetrt.live": logging.NOTSET}


def pytest_collection_finish():
    """Reset the log levels: importing pymmcore-plus sets the root logger to DEBUG, at which torch logs much."""
    usual_log_levels()


@pytest.fixture(autouse=True)
def own_log_levels():
    """Reset the log levels after each test: `unetrt live` silences its logger."""
    yield
    usual_log_levels()


def usual_log_levels():
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def compiled_library(library, *arguments):
    """Compile C sources, with further arguments of the compiler, to a shared library; return its path."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip(requirements.C_COMPILER)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, *arguments], check=True)
    return library


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory):
    """A folder with images/ and labels/: four drawn micrographs, of different sizes."""
    from unetrt.runtime.files.outputs.label_tiff import write_labels
    from unetrt.trainer.drawn_cells import draw

    folder = tmp_path_factory.mktemp("drawn")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number, size in enumerate([(96, 96), (96, 96), (80, 120), (64, 64)]):
        drawing = draw(size, seed=number)
        tifffile.imwrite(folder / "images" / f"{number}.tif", drawing.frame, photometric="minisblack")
        write_labels(folder / "labels" / f"{number}.tif", drawing.labels)
    return folder


@pytest.fixture(scope="session")
def tiny_run(drawn_folder, tmp_path_factory):
    """The run folder of a tiny training: depth 2, base 4, 12 steps."""
    return train(drawn_folder, tmp_path_factory.mktemp("run"), steps=12)


def train(data, folder, steps):
    from unetrt.trainer.dataset import read_dataset
    from unetrt.trainer.recipe import RECIPES
    from unetrt.trainer.run import TrainingBudget, TrainingRun
    from unetrt.trainer.training import Training

    training, validation = read_dataset(data).split(0.25, seed=0)
    recipe = RECIPES["modern"].with_options(depth=2, base=4, tile=92, target="border")
    Training(training, validation, recipe, TrainingRun(folder)).run(TrainingBudget(steps=steps))
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_run):
    from unetrt.trainer.checkpoint import load

    return load(tiny_run)


@pytest.fixture(scope="session")
def settled_checkpoint(drawn_folder, tmp_path_factory):
    """The same network, trained until its scores are far enough apart for INT8."""
    from unetrt.trainer.checkpoint import load

    return load(train(drawn_folder, tmp_path_factory.mktemp("settled"), steps=150))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint, tmp_path_factory):
    """The tiny network's ONNX file: FP32, logits, a tile that is not square."""
    from unetrt.export.exporter import Options, export

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    export(tiny_checkpoint, path, Options(tile=(60, 76)))
    return path


@pytest.fixture(scope="session")
def large_model(tiny_checkpoint, tmp_path_factory):
    """The same with a tile much larger than its frames."""
    from unetrt.export.exporter import Options, export

    path = tmp_path_factory.mktemp("large") / "large.onnx"
    export(tiny_checkpoint, path, Options(tile=(300, 316)))
    return path
