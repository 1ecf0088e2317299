"""Another tile for a model file: planned for frames, verified once, kept, and the same answer."""

import os
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.conftest import editable
from tests.export.earlier_file import SHAPE as EARLIER_SHAPE
from tests.export.earlier_file import SPEC as EARLIER_SPEC
from tests.export.earlier_file import earlier_model
from tests.runtime.test_imports import BLOCK, run
from unetrt.export.exporter import Options, export
from unetrt.export.onnx_model import describe
from unetrt.runtime.errors import (
    BackendUnavailableError,
    FrameError,
    GateError,
    ModelFileError,
    OptionError,
    OutputError,
    TileError,
)
from unetrt.runtime.geometry import planner
from unetrt.runtime.geometry.planner import best_tile
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Backend, open_session
from unetrt.runtime.sessions import retile as retiling
from unetrt.runtime.sessions.retile import folder, kept, model_for, model_if_worth, retile
from unetrt.trainer.checkpoint import untrained_checkpoint
from unetrt.trainer.drawn_cells import draw

CLOSE = 1e-4
SMALL = (40, 50)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def verifications(monkeypatch):
    """The files that were verified."""
    seen, verify = [], retiling._verify
    monkeypatch.setattr(retiling, "_verify", lambda model, other: (seen.append(model), verify(model, other)))
    return seen


def planned(model, frame):
    return best_tile([frame], read_spec(model).shape).tile


@pytest.mark.parametrize("frame", [(40, 50), (131, 200), (700, 90)])
@pytest.mark.parametrize("kind", ["tiny_model", "large_model"])
def test_frames_get_the_planned_tile_and_the_same_result(request, kind, frame):
    model = request.getfixturevalue(kind)
    image = draw((110, 150), seed=3).frame
    with Segmenter(model) as own, Segmenter(model, frame=frame) as other:
        assert other.spec == replace(own.spec, tile=planned(model, frame))
        expected, found = own.scores(image), other.scores(image)
        assert np.abs(expected - found).max() <= CLOSE
        clear = np.abs(expected[1] - expected[0]) > CLOSE
        labels = own.segment(image).labels
        np.testing.assert_array_equal(other.segment(image).labels[clear], labels[clear])
    assert 0 < labels.mean() < 1
    assert read_spec(model).tile == own.spec.tile


def test_a_live_segmenter_has_the_tile_too(large_model):
    with LiveSegmenter(large_model, frame=SMALL) as live:
        assert live.segmenter.spec.tile == planned(large_model, SMALL)
        assert live.submit(draw(SMALL, seed=1).frame).result(timeout=60).error is None
        with pytest.raises(OptionError, match="frame apply only to a path of a model"):
            LiveSegmenter(live.segmenter, frame=SMALL)


def test_a_tile_is_verified_once_and_kept(large_model, verifications):
    first = model_for(large_model, [SMALL])
    again = model_for(large_model, [SMALL])
    assert first == again != large_model
    assert verifications == [large_model]
    assert kept() == [first]
    assert model_for(large_model, [(700, 90)]) != first
    assert len(verifications) == len(kept()) == 2


def test_the_files_own_tile_needs_no_other_file(tmp_path, tiny_checkpoint, verifications):
    tile = best_tile([SMALL], tiny_checkpoint.shape).tile
    export(tiny_checkpoint, tmp_path / "fitting.onnx", Options(tile=tile))
    assert model_for(tmp_path / "fitting.onnx", [SMALL]) == tmp_path / "fitting.onnx"
    assert not verifications
    assert not folder().exists()


def test_another_model_under_the_same_name_is_another_file(large_model, tiny_checkpoint, tmp_path, verifications):
    path = tmp_path / "model.onnx"
    path.write_bytes(large_model.read_bytes())
    first = model_for(path, [SMALL])
    export(tiny_checkpoint, path, Options(tile=(300, 316), head="probabilities"))
    second = model_for(path, [SMALL])
    assert first != second
    assert read_spec(second).head == "probabilities"
    assert len(verifications) == 2


def foreign(path, large_model):
    path.write_bytes(large_model.read_bytes())


def flipped(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def linked(path, large_model):
    path.unlink()
    path.symlink_to(large_model)


@pytest.mark.parametrize("damage", [foreign, flipped, linked, lambda path, _: os.truncate(path, 100)])
def test_a_file_of_the_cache_that_is_not_the_one_written_is_replaced(large_model, verifications, damage):
    path = model_for(large_model, [SMALL])
    content, source = path.read_bytes(), large_model.read_bytes()
    damage(path, large_model)
    assert model_for(large_model, [SMALL]) == path
    assert path.read_bytes() == content
    assert large_model.read_bytes() == source
    assert not path.is_symlink()
    assert len(verifications) == 2


def test_the_least_recently_used_files_are_deleted(large_model, monkeypatch):
    monkeypatch.setattr(retiling._prune, "__defaults__", (1,))
    first = model_for(large_model, [SMALL])
    os.utime(first, (0, 0))
    second = model_for(large_model, [(700, 90)])
    assert kept() == [second]


def with_result_that_depends_on_the_tile(model):
    """Scores times the height of the input."""
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["honest" if name == "scores" else name for name in node.output]
    graph.node.extend(
        [
            onnx.helper.make_node("GlobalMaxPool", ["honest"], ["largest"]),
            onnx.helper.make_node("Mul", ["honest", "largest"], ["scores"]),
        ]
    )
    return model


def test_a_file_whose_result_depends_on_the_tile_is_refused(large_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(with_result_that_depends_on_the_tile(editable(large_model)), path)
    message = r"tile 60x60 is not verified against its own tile 300x316: a probability differs by .*--tile$"
    with pytest.raises(GateError, match=message):
        retile(path, tmp_path / "new" / "out.onnx", (60, 60), 1)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(GateError, match="is not verified"):
        Segmenter(path, frame=SMALL)
    assert not kept()


@pytest.mark.parametrize(("crop", "runs"), [(((4, 12), (4, 16)), True), (((3, 11), (4, 16)), False)])
def test_files_of_earlier_versions_and_their_crops(tmp_path, crop, runs):
    model = earlier_model(untrained_checkpoint(EARLIER_SHAPE, seed=6).network())
    (top, bottom), (_, right) = crop
    values = {"four": 4, "last_row": bottom, "last_column": right}
    for stored in model.graph.initializer:  # as the exporter of that version stored them
        array = onnx.numpy_helper.to_array(stored)
        array = np.array([values[stored.name]], np.int64) if stored.name in values else array
        stored.CopyFrom(onnx.numpy_helper.from_array(array, stored.name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([top], np.int64), "top"))
    next(node for node in model.graph.node if node.op_type == "Slice").input[1] = "top"
    network = {"depth": EARLIER_SHAPE.depth, "base": EARLIER_SHAPE.base}
    describe(model, replace(EARLIER_SPEC, network=network))
    path, out = tmp_path / "earlier.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    if runs:
        retile(path, out, (60, 64), 2)
        image = draw((90, 70), seed=3).frame
        with Segmenter(path) as own, Segmenter(out) as other:
            labels = own.segment(image).labels
            np.testing.assert_array_equal(other.segment(image).labels, labels)
        assert 0 < labels.mean() < 1
    else:
        with pytest.raises(GateError, match="it does not run"):
            retile(path, out, (60, 64), 2)
        assert not out.exists()


@pytest.mark.parametrize("head", ["labels", "logits"])
def test_a_constant_output_verifies_nothing(tiny_checkpoint, tmp_path, head):
    path = tmp_path / "constant.onnx"
    export(tiny_checkpoint, path, Options(tile=(60, 60), head=head))
    model = editable(path)
    for stored in model.graph.initializer:
        if "classify" in stored.name:
            stored.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(stored), stored.name))
    onnx.save(model, path)
    with pytest.raises(GateError, match="the same at every pixel, NaN or infinity, which verifies nothing"):
        retile(path, tmp_path / "out.onnx", (76, 76), 1)


def test_batches_may_change(tiny_model, tmp_path):
    retile(tiny_model, tmp_path / "out.onnx", (92, 60), 3)
    assert read_spec(tmp_path / "out.onnx") == replace(read_spec(tiny_model), tile=(92, 60), batch=3)


def test_a_plan_needs_no_more_than_the_free_memory(large_model, monkeypatch):
    frame = (600, 600)
    roomy = read_spec(model_for(large_model, [frame])).tile
    monkeypatch.setattr(planner, "free_memory", lambda: 3 * 2**20)
    assert read_spec(model_for(large_model, [frame])).tile < roomy
    monkeypatch.setattr(planner, "free_memory", lambda: 2**16)
    with pytest.raises(TileError, match="no tile fits"):
        model_for(large_model, [frame])


@pytest.mark.parametrize(
    "frame",
    [
        (0, 5),
        (5, -1),
        "512",
        (512.0, 512),
        512,
        (512,),
        (1, 2, 3),
        (True, 5),
        ("512", "512"),
        b"ab",
        [None, 1],
        np.array(5),
    ],
)
def test_what_is_not_the_size_of_a_frame(tiny_model, frame):
    with pytest.raises(OptionError, match=r"frame must be the height and width of your frames .* \(got "):
        Segmenter(tiny_model, frame=frame)


def test_numpy_integers_and_lists_are_sizes(large_model):
    with Segmenter(str(large_model), frame=list(np.array(SMALL, np.uint16))) as segmenter:
        assert segmenter.spec.tile == planned(large_model, SMALL)


def test_a_frame_too_large_to_plan_for(tiny_model):
    with pytest.raises(FrameError, match="no plan for a frame of 1000000000000 x 5 px"):
        Segmenter(tiny_model, frame=(10**12, 5))


def test_models_whose_tile_is_fixed(tiny_model, tmp_path):
    with pytest.raises(OptionError, match="a.engine is an engine, whose tile is fixed: open the ONNX file that it was"):
        Segmenter(tmp_path / "a.engine", frame=SMALL)
    with pytest.raises(ModelFileError, match="none.onnx does not exist"):
        Segmenter(tmp_path / "none.onnx", frame=SMALL)
    adopted = editable(tiny_model)
    describe(adopted, replace(read_spec(tiny_model), network={}))
    onnx.save(adopted, tmp_path / "adopted.onnx")
    with pytest.raises(ModelFileError, match="is not a U-Net of ours: export or adopt its network again"):
        Segmenter(tmp_path / "adopted.onnx", frame=SMALL)
    with (
        open_session(tiny_model) as session,
        pytest.raises(OptionError, match="frame cannot apply to a session that is already open"),
    ):
        Segmenter(session, frame=SMALL)
    with pytest.raises(OptionError, match="backend 'tpu' is unknown"):
        Segmenter(tiny_model, frame=SMALL, backend="tpu")


def test_a_cache_that_cannot_be_written_to(large_model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write to"):
        Segmenter(large_model, frame=SMALL)


def test_without_an_engine_for_the_cpu_nothing_is_verified(large_model, monkeypatch, tmp_path):
    monkeypatch.setattr(Backend, "probe", lambda backend, device=None: None if backend.gpu else "it is not installed")
    with pytest.raises(
        BackendUnavailableError, match="verified on the CPU, and no engine for it is usable; openvino: it"
    ):
        retile(large_model, tmp_path / "out.onnx", (60, 60), 1)


def test_a_gpu_opens_the_retiled_file(large_model, monkeypatch):
    """TensorRT builds the engine of the file with the planned tile, and lanes count in its memory."""
    opened, probe, on_cpu = [], Backend.probe, Backend.open
    monkeypatch.setattr(Backend, "probe", lambda one, device=None: None if one.name == "tensorrt" else probe(one))

    def instead(backend, path, device=None, options=None):
        if backend.gpu:
            opened.append(path)
            backend = replace(backend, module="onnxruntime", gpu=False)
        return on_cpu(backend, path, None, options)

    monkeypatch.setattr(Backend, "open", instead)
    with Segmenter(large_model, frame=SMALL, backend="tensorrt") as segmenter:
        assert segmenter.spec.tile == planned(large_model, SMALL)
    assert opened == kept()


def worth(model, frames):
    return read_spec(model_if_worth(model, frames)).tile


def test_a_tile_is_changed_only_where_that_saves_time(large_model, tiny_checkpoint, tmp_path, monkeypatch):
    own = read_spec(large_model).tile
    assert worth(large_model, [SMALL]) == own, "verification costs more than one frame saves"
    assert worth(large_model, 9 * [SMALL]) == planned(large_model, SMALL)
    assert worth(large_model, [SMALL]) == planned(large_model, SMALL), "it is verified now"
    assert worth(large_model, []) == own
    best = best_tile([(200, 200)], tiny_checkpoint.shape).tile
    near = tmp_path / "near.onnx"
    export(tiny_checkpoint, near, Options(tile=(best[0] + 4, best[1])))
    assert model_if_worth(near, 99 * [(200, 200)]) == near
    monkeypatch.setattr(Backend, "probe", lambda *_: None)
    assert model_if_worth(large_model, 99 * [(30, 30)], "tensorrt") == large_model


def test_many_small_frames_share_a_pass(tiny_model):
    own, best = read_spec(tiny_model), planned(tiny_model, (8, 8))
    few, many = model_for(tiny_model, [(8, 8)]), model_if_worth(tiny_model, 20000 * [(8, 8)])
    batch = read_spec(many).batch
    assert [read_spec(path).tile for path in (few, many)] == [best, best]
    assert (read_spec(few).batch, batch) == (own.batch, 1 << (2**14 // (best[0] * best[1])).bit_length() - 1)
    assert batch > own.batch
    frames = np.random.default_rng(0).integers(0, 4000, (50, 8, 8)).astype(np.uint16)
    labels = []
    for path in (tiny_model, many):
        with Segmenter(path) as segmenter:
            labels.append(segmenter.segment(frames).labels)
    np.testing.assert_array_equal(*labels)


def test_neither_torch_nor_onnx_is_needed(large_model, tmp_path):
    out = run(
        BLOCK
        + "from unetrt.__main__ import main; from unetrt import Segmenter\n"
        + f"model, out = {str(large_model)!r}, {str(tmp_path / 'o.onnx')!r}\n"
        + "assert main(['retile', model, '--frame', '40x50', '-o', out]) == 0\n"
        + "with Segmenter(model, frame=(40, 50)) as s: print(*s.spec.tile)\n"
    )
    height, width = planned(large_model, SMALL)
    assert out.split("\n")[1] == f"{height} {width}"
