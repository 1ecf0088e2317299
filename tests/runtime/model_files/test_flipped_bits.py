"""A bit that flips anywhere in a model file is noticed, or changes nothing."""

import random

import numpy as np
import onnx
import pytest

from tests.runtime.model_files.small_models import convolution, model, outside, weights
from unetrt.export.onnx_model import copy_file, save, with_batch
from unetrt.runtime.errors import ModelFileError, UnetrtError
from unetrt.runtime.model.integrity import DIGEST, is_intact, with_digest
from unetrt.runtime.model.onnx_file import bundled_names, bundled_path, read_metadata, read_spec
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import KEY
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.pretrained import Pretrained

FLIPS = 300
DAMAGED = r"is damaged: its contents do not have the SHA-256 that it states; export or copy it again"


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def outcome(path, frame):
    """The labels of a frame, or the error of refusing the file."""
    try:
        with Segmenter(path, backend="onnxruntime") as segmenter:
            return segmenter.segment(frame).labels
    except UnetrtError as error:
        return error


def test_a_flipped_bit_is_refused_or_harmless(tiny_model, tiny_checkpoint, tmp_path):
    content, frame = tiny_model.read_bytes(), tiny_checkpoint.frames[0][0]
    expected = outcome(tiny_model, frame)
    rng = random.Random(0)
    # Anywhere, and in the metadata: spec and digest.
    places = [(0, len(content))] * FLIPS + [(content.index(KEY.encode()), len(content))] * FLIPS
    path, refused = tmp_path / "model.onnx", 0
    for begin, end in places:
        bit = rng.randrange(8 * begin, 8 * end)
        path.write_bytes(flipped(content, bit))
        found = outcome(path, frame)
        if isinstance(found, UnetrtError):
            assert "\n" not in str(found), bit
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected, err_msg=str(bit))
    assert refused > 0.9 * len(places)


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """The tiny model with one bit of a weight flipped: its largest exponent bit."""
    content = tiny_model.read_bytes()
    stored = onnx.load(tiny_model).graph.initializer[0].raw_data
    path = tmp_path / "damaged.onnx"
    path.write_bytes(flipped(content, 8 * (content.index(stored) + 3) + 6))
    return path


READERS = {
    "onnxruntime": lambda path: Segmenter(path, backend="onnxruntime"),
    "openvino": lambda path: Segmenter(path, backend="openvino"),
    "another tile": lambda path: retiled(path, (44, 60), 1),
    "a copy": lambda path: copy_file(path, path.with_name("copy.onnx")),
    "another batch": lambda path: with_batch(path, 2),
    "a start of training": Pretrained.read,
}


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_weights_refuses_a_damaged_file(damaged, reader):
    with pytest.raises(ModelFileError, match=DAMAGED):
        READERS[reader](damaged)
    assert list(damaged.parent.iterdir()) == [damaged]


def test_every_file_that_is_written_states_its_digest(tiny_model, tmp_path):
    files = [tmp_path / name for name in ("retiled.onnx", "batch.onnx", "copy.onnx")]
    files[0].write_bytes(retiled(tiny_model, (44, 60), 1))
    save(with_batch(tiny_model, 2), files[1])
    copy_file(tiny_model, files[2])
    for path in (tiny_model, *files):
        assert is_intact(path), path
    assert files[2].read_bytes() == tiny_model.read_bytes()


def test_a_file_of_an_earlier_version_has_no_digest_and_loads(tiny_model, tiny_checkpoint, tmp_path):
    earlier = onnx.load(tiny_model)
    onnx.helper.set_model_props(earlier, {KEY: read_spec(tiny_model).to_json()})
    path = tmp_path / "earlier.onnx"
    onnx.save(earlier, path)
    assert not is_intact(path)
    frame = tiny_checkpoint.frames[0][0]
    np.testing.assert_array_equal(outcome(path, frame), outcome(tiny_model, frame))
    path.write_bytes(retiled(path, (44, 60), 1))
    assert is_intact(path)


def test_a_digest_includes_external_weights(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    path = tmp_path / "model.onnx"
    made = model([convolution()], [outside(weights(), "w.bin", offset=0, length=8)])
    path.write_bytes(with_digest(made.SerializeToString(), tmp_path))
    assert is_intact(path)
    (tmp_path / "w.bin").write_bytes(np.float32([1, 3]).tobytes())
    with pytest.raises(ModelFileError, match=DAMAGED):
        require_safe(path)


def test_a_digest_replaces_an_earlier_one(tiny_model):
    content = tiny_model.read_bytes()
    assert with_digest(content) == content
    assert list(read_metadata(tiny_model)) == [KEY, DIGEST]


def test_models_that_come_with_unetrt_state_their_digest_and_verification():
    assert bundled_names()
    for name in bundled_names():
        assert is_intact(bundled_path(name)), name
        assert read_spec(bundled_path(name)).verification.measured["flips"] == 0
