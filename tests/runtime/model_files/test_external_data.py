import os
import sys
from hashlib import sha256

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.runtime.model_files.small_models import (
    branch,
    branching,
    constant,
    convolution,
    model,
    outside,
    tensor,
    value,
    weights,
)
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.integrity import external_files, sha256_of_model
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.sessions import open_session

VALUES = np.float32([1, 2]).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder for a model with weights in w.bin and in/w.bin; beside it are files that are not the model's."""
    inner = tmp_path / "models"
    (inner / "in").mkdir(parents=True)
    for path in (inner / "w.bin", inner / "in" / "w.bin", tmp_path / "w.bin"):
        path.write_bytes(VALUES)
    return inner


def saved(made, folder):
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def with_weights(stored, folder):
    return saved(model([convolution()], [stored]), folder)


def _sparse(stored, dims=(2, 1, 1, 1)):
    made = model([convolution()])
    indices = tensor("", [0, 1], np.int64)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(stored, indices, dims))
    return made


def _function(stored):
    body = [constant("inner", stored), helper.make_node("Conv", ["x", "inner"], ["y"])]
    function = helper.make_function("own", "Scores", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    made = model([helper.make_node("Scores", ["frame"], ["scores"], domain="own")], functions=[function])
    made.opset_import.add(domain="own", version=1)
    return made


def _loop(stored):
    body = branch(stored, "scan")
    node = helper.make_node("Loop", ["three", ""], ["scores"], body=body)
    return model([node], [tensor("three", 3, np.int64)])


def _training(stored):
    made = model([convolution()], [weights()])
    made.training_info.add().initialization.initializer.append(stored)
    return made


PLACES = {
    "initializer": lambda stored: model([convolution()], [stored]),
    "attribute": lambda stored: model([constant("weights", stored), convolution()]),
    "then": lambda stored: branching(branch(stored, "a"), branch(weights(), "b")),
    "else": lambda stored: branching(branch(weights(), "a"), branch(stored, "b")),
    "loop": _loop,
    "sparse": _sparse,
    "function": _function,
    "training": _training,
    "list of tensors": lambda stored: model([helper.make_node("Custom", [], ["scores"], domain="own", all=[stored])]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_is_found_wherever_a_tensor_can_be(folder, place):
    stored = outside(tensor("weights", np.float32([[1, 2]]).reshape(2, 1, 1, 1)), "in/w.bin", offset=0, length=8)
    if place == "sparse":
        stored = outside(tensor("weights", [1.0, 2.0]), "in/w.bin")
    assert external_files(saved(PLACES[place](stored), folder)) == (folder / "in" / "w.bin",)
    stored.external_data[0].value = "../w.bin"
    with pytest.raises(ModelFileError, match=r"tensor 'weights' has its values at '../w.bin'"):
        external_files(saved(PLACES[place](stored), folder))


def test_a_model_with_its_weights_inside_has_no_files(folder, tiny_model):
    assert external_files(with_weights(weights(), folder)) == ()
    assert external_files(tiny_model) == ()


def test_files_are_named_once_and_sorted(folder):
    names = ("w.bin", "./in//w.bin", "in/w.bin")
    stored = [outside(weights(name=f"weights{number}"), name) for number, name in enumerate(names)]
    nodes = [convolution(f"weights{number}", f"y{number}") for number in range(3)]
    made = model([*nodes, helper.make_node("Sum", ["y0", "y1", "y2"], ["scores"])], stored)
    assert external_files(saved(made, folder)) == (folder / "in" / "w.bin", folder / "w.bin")


def test_what_onnx_and_onnxruntime_wrote_is_let_through(folder):
    made = model([convolution()], [weights(np.arange(2))])
    made.graph.initializer.append(tensor("unused", np.zeros(4096)))
    onnx.save(made, folder / "model.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    assert external_files(folder / "model.onnx") == (folder / "data.bin",)
    with open_session(folder / "model.onnx") as session:
        output = session.run(np.full_like(session.spec.new_input(), 3))
        np.testing.assert_array_equal(output[0, :, 0, 0], [0, 3])


PLAIN = "only a plain path within the model's folder"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and free links are POSIX's")
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("..", PLAIN),
        ("../", PLAIN),
        ("./..", PLAIN),
        ("in/..", PLAIN),
        ("../w.bin", PLAIN),
        ("in/../../w.bin", PLAIN),
        ("in/../w.bin", PLAIN),
        ("#../w.bin", r"cannot be read \(No such file"),
        ("#/../../w.bin", PLAIN),
        ("in#/../w.bin", PLAIN),
        ("%2e%2e/w.bin", r"cannot be read \(No such file"),
        ("~/w.bin", r"cannot be read \(No such file"),
        ("..\uff0fw.bin", r"cannot be read \(No such file"),
        ("file:///etc/hostname", PLAIN),
        ("//etc/hostname", PLAIN),
        ("/etc/hostname", PLAIN),
        ("C:/w.bin", PLAIN),
        ("C:w.bin", PLAIN),
        ("in\\w.bin", PLAIN),
        ("\\\\server\\share\\w.bin", PLAIN),
        ("w.bin:stream", PLAIN),
        ("", PLAIN),
        (".", PLAIN),
        ("w.bin\0.txt", PLAIN),
        ("w.bin\n", PLAIN),
        ("*/_ORT_MEM_ADDR_/*", PLAIN),
        ("in", "not a regular file"),
        ("in/", "not a regular file"),
        ("none.bin", r"cannot be read \(No such file"),
        ("w.bin/w.bin", r"cannot be read \(Not a directory"),
        ("n" * 5000, "cannot be read"),
        ("pipe", "not a regular file"),
        ("link-out", "a link out of the model's folder"),
        ("folder-out/w.bin", "a link out of the model's folder"),
        ("device", "a link out of the model's folder"),
        ("loop", "cannot be read"),
    ],
)
def test_no_other_place_is_opened(folder, location, message):
    os.mkfifo(folder / "pipe")
    for name, target in (("link-out", "../w.bin"), ("folder-out", ".."), ("device", "/dev/zero"), ("loop", "loop")):
        (folder / name).symlink_to(target)
    path = with_weights(outside(weights(), location), folder)
    with pytest.raises(ModelFileError, match=message) as caught:
        external_files(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match=message):
        open_session(path, "onnxruntime")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
@pytest.mark.parametrize("name", ["none.onnx", "in", "pipe"])
def test_what_is_no_file_is_no_model(folder, name):
    os.mkfifo(folder / "pipe")
    for ask in (external_files, sha256_of_model):
        with pytest.raises(ModelFileError, match=f"{name} does not exist or is not a regular file"):
            ask(folder / name)


def test_a_link_within_the_folder_is_opened(folder):
    (folder / "link.bin").symlink_to("in/w.bin")
    assert external_files(with_weights(outside(weights(), "link.bin"), folder)) == (folder / "link.bin",)


def test_a_model_that_is_a_link_has_its_files_beside_the_link(folder, tmp_path):
    path = with_weights(outside(weights(), "w.bin"), folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.onnx").symlink_to(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        external_files(elsewhere / "model.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 0, "length": 8}, None),
        ({"length": 8, "checksum": "00"}, None),
        ({"offset": -1}, "offset '-1': it must be a number"),
        ({"offset": "0x0"}, "offset '0x0'"),
        ({"offset": "1e3"}, "offset '1e3'"),
        ({"offset": "²"}, "offset '²'"),
        ({"offset": " 0"}, "offset ' 0'"),
        ({"offset": ""}, "offset ''"),
        ({"offset": "9" * 20}, "offset '9"),
        ({"length": -8}, "length '-8'"),
        ({"length": 4}, "4 bytes in .*w.bin, but its dims and type need 8"),
        ({"length": 16}, "16 bytes in .*w.bin, but its dims and type need 8"),
        ({"offset": 1}, "bytes 1 to 9 of .*w.bin, which has 8"),
        ({"offset": 9 * 10**18, "length": 8}, "which has 8"),
    ],
)
def test_offset_and_length_must_fit_the_file_and_the_tensor(folder, entries, message):
    path = with_weights(outside(weights(), "w.bin", **entries), folder)
    if message is None:
        assert external_files(path) == (folder / "w.bin",)
        return
    with pytest.raises(ModelFileError, match=message):
        external_files(path)


def _changed(**fields):
    """The weights with other fields; a list replaces, None clears."""
    stored = weights()
    for name, content in fields.items():
        stored.ClearField(name)
        if isinstance(content, list):
            getattr(stored, name).extend(content)
        elif content is not None:
            setattr(stored, name, content)
    return stored


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (_changed(dims=[2, -1, 1, 1]), "dims 2x-1x1x1"),
        (_changed(dims=[1 << 62, 4]), "more than 2147483647 bytes"),
        (_changed(dims=[0, 1 << 62]), "more than 2147483647 bytes"),
        (_changed(dims=[1] * 65), "64 numbers"),
        (_changed(dims=[3, 1, 1, 1]), "8 bytes, but its dims 3x1x1x1 need 12"),
        (_changed(raw_data=b""), "0 bytes, but its dims 2x1x1x1 need 8"),
        (_changed(raw_data=None), "0 bytes, too few"),
        (_changed(raw_data=None, dims=[1000], float_data=[1.0]), "too few for its dims 1000"),
        (_changed(data_type=99), "data type 99: it must be one of ONNX 1.23.*export or copy the model again"),
        (_changed(data_type=0), "data type 0"),
        (_changed(data_type=TensorProto.DOUBLE), "need 16"),
        (_changed(data_type=TensorProto.STRING), "need 0"),
        (_changed(float_data=[1.0]), "but its dims 2x1x1x1 need 8"),
        (
            _changed(data_location=TensorProto.EXTERNAL),
            "external data, but is of strings or has values in the file too",
        ),
    ],
)
def test_a_tensor_whose_bytes_do_not_fit_is_refused(folder, stored, message):
    with pytest.raises(ModelFileError, match=message):
        require_safe(with_weights(stored, folder))


@pytest.mark.parametrize("kind", [number for number in TensorProto.DataType.values() if number])
def test_sizes_are_those_that_onnx_writes(folder, kind):
    """Seven elements: those of less than a byte do not fill the last one."""
    made = helper.make_tensor("weights", kind, [7], [b"1"] * 7 if kind == TensorProto.STRING else np.ones(7))
    external_files(with_weights(made, folder))
    if kind in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return
    raw = helper.make_tensor("weights", kind, [7], _raw(made), raw=True)
    external_files(with_weights(raw, folder))
    raw.raw_data += b"\0"
    with pytest.raises(ModelFileError, match="but its dims 7 need"):
        external_files(with_weights(raw, folder))


def _raw(stored):
    """The bytes of a tensor as the onnx package packs them."""
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored)).raw_data


def test_a_sparse_tensor_that_would_fill_the_memory_is_refused(folder):
    with pytest.raises(ModelFileError, match="dims 1000000x1000000, more than"):
        external_files(saved(_sparse(tensor("weights", [1.0, 2.0]), (10**6, 10**6)), folder))


def test_subgraphs_nested_without_end_are_refused(folder):
    inner = branch(weights(), "scores")
    for _ in range(15):
        node = helper.make_node("If", ["bright"], ["scores"], then_branch=inner, else_branch=branch(weights(), "b"))
        inner = helper.make_graph([node], "g", [], [value("scores")])
    with pytest.raises(ModelFileError, match="nested more than 32 deep"):
        external_files(saved(branching(inner, branch(weights(), "b")), folder))


def test_a_tensor_given_twice_is_refused(folder):
    """Protobuf merges the two: the second says that the first one's values lie outside."""
    made = model([constant("weights", weights()), convolution()])
    attribute = made.graph.node[0].attribute[0]
    again = onnx.AttributeProto(t=outside(weights(), "../w.bin"))
    content = attribute.SerializeToString() + again.SerializeToString()
    merged = onnx.AttributeProto.FromString(content)
    assert merged.t.data_location == TensorProto.EXTERNAL
    path = saved(made, folder)
    from unetrt.runtime.model.onnx_file import Message, field_of, replace

    def inside(data, *numbers):
        if not numbers:
            return content
        part = next(each for each in Message.of(data).fields() if each.number == numbers[0])
        changed = inside(data[part.content : part.end], *numbers[1:])
        return replace(data, {part: field_of(numbers[0], changed)})

    path.write_bytes(inside(path.read_bytes(), 7, 1, 5))
    onnx.load(path, load_external_data=False)
    with pytest.raises(ModelFileError, match="two of its field 5"):
        external_files(path)


def test_a_name_that_ends_in_ort_is_read_as_onnx_all_the_same(folder):
    path = with_weights(weights(), folder).rename(folder / "model.ort")
    with open_session(path) as session:
        assert session.spec.tile == (8, 8)


def test_the_hash_of_a_single_file_is_that_of_its_bytes(tiny_model):
    assert sha256_of_model(tiny_model) == sha256(tiny_model.read_bytes()).hexdigest()


def test_any_changed_byte_or_name_changes_the_hash(folder):
    """Not where the model lies, nor its own name; and files are told apart, not only their sum."""
    path = with_weights(outside(weights(), "in/w.bin"), folder)
    seen = [sha256_of_model(path)]
    assert sha256_of_model(path.rename(folder / "other.onnx")) == seen[0]
    (folder / "in" / "w.bin").write_bytes(VALUES[:-1] + b"\0")
    seen.append(sha256_of_model(folder / "other.onnx"))
    (folder / "in" / "w.bin").write_bytes(VALUES + b"\0")  # beyond what a tensor uses
    seen.append(sha256_of_model(folder / "other.onnx"))
    (folder / "in" / "w.bin").write_bytes(VALUES)
    seen.append(sha256_of_model(with_weights(outside(weights(), "w.bin"), folder)))
    seen.append(sha256_of_model(with_weights(outside(weights(), "w.bin", offset=0), folder)))
    assert len(set(seen)) == len(seen)


def test_a_weights_file_that_may_not_be_read_says_so(folder):
    path = with_weights(outside(weights(), "w.bin"), folder)
    (folder / "w.bin").chmod(0)
    if os.access(folder / "w.bin", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ModelFileError, match="w.bin cannot be read"):
        sha256_of_model(path)
