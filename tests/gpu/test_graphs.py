"""Passes run as CUDA graphs where the engine allows it, and answer alike."""

import numpy as np
import pytest

from tests.gpu.engines import COPIES, TENSORRT, opened
from unetrt.runtime.cuda.device import Graph
from unetrt.runtime.engines.flavours import AUTO, usable_flavour
from unetrt.runtime.machine import this_machine
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import cuda

pytestmark = pytest.mark.gpu


@pytest.fixture
def launches(monkeypatch):
    """Counts launches of graphs that we captured."""
    counted = []
    launch = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda graph, stream: (counted.append(graph.handle), launch(graph, stream)))
    return counted


def test_passes_are_captured_and_replayed(backend, plain, frames, launches, monkeypatch, caplog):
    """TensorRT for RTX captures by itself, and ONNX Runtime gives its stream what it likes."""
    frame = frames(1, (101, 163), "float32")[0]
    with caplog.at_level("INFO", "unetrt"), opened(backend, plain) as session:
        captures = session.cuda.driver.captures
        with Segmenter(session, lanes=2) as segmenter:
            launches.clear()
            scores = segmenter.scores(frame)
            tiles = segmenter.segment(frame).timings.tiles
            used = len(launches)
        monkeypatch.setattr(cuda.CapturedPass, "_capture", lambda one: None)
        with Segmenter(session, lanes=2) as segmenter:
            launches.clear()
            np.testing.assert_array_equal(segmenter.scores(frame), scores)
            assert launches == []
    if captures and captured_by_us(backend):
        assert used == 2 * tiles
        assert "no CUDA graph" not in caplog.text
    else:
        assert used == 0


def captured_by_us(backend):
    if backend == TENSORRT:
        return not usable_flavour(AUTO, this_machine()).portable
    return backend == COPIES


def test_rtx_captures_by_itself(tensorrt, plain):
    with opened(tensorrt, plain) as session:
        loaded = session._loaded
        if not loaded.flavour.portable:
            pytest.skip("this is TensorRT, whose passes we capture")
        lanes = session.lanes(1)
        settings = session._contexts.settings
        assert settings.cuda_graph_strategy == loaded.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = lanes[0]._open.engine_pass._context
        with session.cuda.current():
            assert context.is_stream_capturable(lanes[0].place.stream.handle)
