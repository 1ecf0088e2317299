"""What TensorRT for RTX compiles on the device is kept: a second process begins faster."""

import pytest

from tests.gpu.children import child
from unetrt.benchmarks.networks import untrained, write_model
from unetrt.export.exporter import Options
from unetrt.runtime.engines.cache import place
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
from unetrt.runtime.engines.flavours import AUTO, usable_flavour
from unetrt.runtime.machine import this_machine
from unetrt.runtime.model.onnx_file import read_spec

pytestmark = pytest.mark.gpu


@pytest.fixture
def engine_of_rtx(tensorrt, tmp_path):
    """An engine that is built before anything is timed."""
    machine = this_machine()
    flavour = usable_flavour(AUTO, machine)
    if not flavour.portable:
        pytest.skip("this is TensorRT, which compiles nothing on the target")
    model, path = tmp_path / "model.onnx", tmp_path / "model.engine"
    write_model(untrained(base=32, depth=4), Options((204, 204), "fp16"), model)
    options = BuildOptions.for_gpu(flavour, machine)
    place(path, model, facts_of(model, read_spec(model), flavour, machine, options))
    return path


def test_a_second_process_begins_faster(engine_of_rtx, tmp_path):
    def first_frame():
        done = child(
            "tests.gpu.child_cases", "first_frame", "tensorrt", engine_of_rtx, XDG_CACHE_HOME=str(tmp_path / "cache")
        )
        assert (done.returncode, done.stderr) == (0, "")
        return float(done.stdout)

    cold = first_frame()
    (kept,) = (tmp_path / "cache" / "unetrt" / "runtime").glob("*.cache")
    assert kept.stat().st_size > 0
    written = kept.stat().st_mtime_ns
    warm = min(first_frame() for _ in range(2))
    assert warm < cold
    assert kept.stat().st_mtime_ns == written, "nothing new was compiled, so nothing was written"


def test_a_damaged_cache_costs_time_and_nothing_else(engine_of_rtx, tmp_path):
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for _ in range(2):
        done = child("tests.gpu.child_cases", "first_frame", "tensorrt", engine_of_rtx, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        (kept,) = (tmp_path / "cache" / "unetrt" / "runtime").glob("*.cache")
        assert kept.read_bytes()[:6] != b"broken"
        kept.write_bytes(b"broken" + kept.read_bytes()[6:1000])
