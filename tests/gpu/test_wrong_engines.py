"""Engines that do not fit say why, in one line and with what helps; the next one works."""

from dataclasses import replace

import numpy as np
import pytest

from unetrt.runtime.engines.cache import place
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of, read_sidecar, write_engine
from unetrt.runtime.engines.flavours import AUTO, usable_flavour
from unetrt.runtime.errors import EngineError, OptionError
from unetrt.runtime.machine import this_machine
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session

pytestmark = pytest.mark.gpu


@pytest.fixture
def built(tensorrt, plain, tmp_path):
    machine = this_machine()
    flavour = usable_flavour(AUTO, machine)
    facts = facts_of(plain, read_spec(plain), flavour, machine, BuildOptions.for_gpu(flavour, machine))
    path = tmp_path / "plain.engine"
    place(path, plain, facts)
    return path


def rewrite(path, content=None, spec=None, **facts):
    """Write an engine file anew, whole, with a sidecar that says something else of it."""
    sidecar = read_sidecar(path)
    content = path.read_bytes() if content is None else content
    write_engine(path, content, replace(sidecar.facts, **facts), spec or sidecar.spec, sidecar.source)


def refused(path):
    with pytest.raises(EngineError) as raised:
        open_session(path, "tensorrt", 0)
    said = str(raised.value)
    assert "\n" not in said
    assert f"-o {path}" in said
    return said


def test_an_engine_file_runs_as_its_model_does(built, plain, frames):
    frame = frames(1, (101, 163))[0]
    with Segmenter(built) as engine, Segmenter(plain, backend="tensorrt") as model:
        np.testing.assert_array_equal(engine.scores(frame), model.scores(frame))


def test_of_another_version(built):
    rewrite(built, version="1.0.0.1")
    assert "built with TensorRT" in refused(built)


def test_of_another_gpu(built):
    facts = read_sidecar(built).facts
    if facts.flavour == "tensorrt-rtx":
        rewrite(built, options=replace(facts.options, capabilities=("12.1",)))
    else:
        rewrite(built, machine=replace(facts.machine, capability="12.1"))
    assert "built with compute capability 12.1, here " in refused(built)


def test_cut_short(built):
    """The sidecar fits: what is wrong TensorRT has to say."""
    rewrite(built, built.read_bytes()[: built.stat().st_size // 2])
    said = refused(built)
    assert "cannot load" in said
    assert "it states no reason" not in said


def test_damaged_after_it_was_written(built):
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 255
    built.write_bytes(content)
    assert "or is damaged" in refused(built)


def test_with_another_models_spec(built):
    rewrite(built, spec=replace(read_sidecar(built).spec, batch=2))
    assert "its spec says" in refused(built)


def test_after_a_refusal_the_next_one_works(built, plain, frames):
    frame, content = frames(1, (60, 60))[0], built.read_bytes()
    for _ in range(3):
        rewrite(built, content[: len(content) // 2])
        refused(built)
        rewrite(built, content)
        with Segmenter(built) as segmenter:
            assert segmenter.segment(frame).labels.shape == (60, 60)


def test_on_a_device_that_is_not_there(backend, plain):
    with pytest.raises(OptionError, match="there is no CUDA device 99"):
        if backend == "copies":
            from tests.gpu.engines import copies

            copies(99)
        open_session(plain, backend, 99)
