import errno
import os
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import small_spec
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import read_metadata, read_spec
from unetrt.runtime.model.spec import KEY
from unetrt.runtime.segment.segmenter import Segmenter

SPEC = small_spec(written_by="a test")


def _model(metadata):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [100], [0.5] * 100)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:], [weights])
    model = helper.make_model(graph)
    helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(_model({"other": "ü", KEY: SPEC.to_json()}), path)
    return path


def test_the_spec_is_read_without_an_onnx_library(model_file):
    assert read_spec(model_file) == SPEC
    assert read_metadata(model_file) == {"other": "ü", KEY: SPEC.to_json()}


def test_a_file_cut_anywhere_is_refused(model_file):
    """Cut between two fields it is a shorter message, valid as such, but then without graph or spec."""
    whole = model_file.read_bytes()
    for length in range(len(whole)):
        model_file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="whole ONNX file|it has no graph|no unetrt spec"):
            read_spec(model_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no graph"),
        (b"<html>not found</html>", "not a whole ONNX file"),
        (b"\x89PNG\r\n\x1a\n0000", "not an ONNX file: it has no graph"),
        (b"\x08\x0a" + b"\xff" * 12, "number of more than 64 bits"),
        (_model({}).SerializeToString(), "carries no unetrt spec.*unetrt export"),
        (_model({KEY: "{}"}).SerializeToString(), "missing schema"),
    ],
)
def test_what_is_no_model_of_ours(tmp_path, content, message):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        read_spec(path)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist: `unetrt export CHECKPOINT -o none.onnx`"):
        read_spec(tmp_path / "none.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says that such a file does not exist")
def test_a_name_that_the_system_refuses_is_no_model():
    with pytest.raises(ModelFileError, match=f"x cannot be opened: {os.strerror(errno.ENAMETOOLONG)}"):
        Segmenter("x" * 300)
