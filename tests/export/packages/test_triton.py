from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as triton_proto

from tests.conftest import editable, small_spec
from tests.export.packages.conftest import EXPORTS
from unetrt.export.packages import triton, write
from unetrt.runtime.errors import EngineError, ModelFileError, OptionError, OutputError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec

PLAN = small_spec(batch=4, head="labels", classes=("background", "nucleus", 'a "third"'))
DTYPES = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(uint16)": "TYPE_UINT16"}


def configured(folder):
    """Parse a configuration as Triton does; an unknown field or a wrong type is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), triton_proto.ModelConfig())


def opened(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def dims(tensor):
    return [length if isinstance(length, int) else -1 for length in tensor.shape]


@pytest.mark.parametrize("batching", [None, 0])
@pytest.mark.parametrize("name", EXPORTS)
def test_the_configuration_is_what_the_backend_finds_in_the_graph(exports, tmp_path, name, batching):
    """As CompareDimsSupported of Triton's onnxruntime backend has it: with batching a free axis, then the dims."""
    version = write("triton", exports[name], tmp_path, name="cells", max_batch_size=batching)
    assert version == tmp_path / "cells" / "1"
    config, session = configured(tmp_path / "cells"), opened(version / "model.onnx")
    assert (config.name, config.backend, config.platform) == ("cells", "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == (8 if batching is None else 0)
    first = [-1] if config.max_batch_size else []
    for said, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in said] == [tensor.name for tensor in found]
        assert first + list(said[0].dims) == dims(found[0])
        assert triton_proto.DataType.Name(said[0].data_type) == DTYPES[found[0].type]
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 0)
    onnx.checker.check_model(onnx.load(version / "model.onnx"), full_check=True)


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_served_graph_answers_as_the_exported_one(exports, tmp_path, name, batch):
    spec = read_spec(exports[name])
    shape = (batch, *spec.new_input().shape[1:])
    tiles = np.random.default_rng(0).uniform(0, 200 if spec.takes_raw else 2, shape).astype(spec.input_dtype)
    served = opened(write("triton", exports[name], tmp_path, name="cells") / "model.onnx").run(None, {INPUT: tiles})[0]
    session, full = opened(exports[name]), spec.new_input()
    for tile, answer in zip(tiles, served, strict=True):
        full[:] = tile
        np.testing.assert_allclose(
            answer, session.run(None, {INPUT: full})[0][0], atol=1e-3 if "batch" in name else 1e-5
        )
    assert len(served) == batch


def test_a_client_can_plan_its_tiles_from_the_configuration(exports, tmp_path):
    write("triton", exports["labels"], tmp_path, name="cells")
    said = ModelSpec.from_json(configured(tmp_path / "cells").parameters["unetrt"].string_value)
    spec = read_spec(exports["labels"])
    assert said == replace(spec, network={}, training={}, weights_sha256="", written_by="", verification=None)
    assert said.normalisation == spec.normalisation


def test_batching_and_instances_are_as_asked(exports, tmp_path):
    asked = {"max_batch_size": 16, "preferred_batch_sizes": (4, 16), "max_queue_delay_microseconds": 500}
    write("triton", exports["logits"], tmp_path, name="cells", instances=2, device="cpu", **asked)
    config = configured(tmp_path / "cells")
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, triton_proto.ModelInstanceGroup.KIND_CPU)


def test_the_name_is_that_of_the_file_unless_given(exports, tmp_path):
    assert write("triton", exports["logits"], tmp_path) == tmp_path / "tiny" / "1"
    assert configured(tmp_path / "tiny").name == "tiny"


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "cells.engine"
    path.write_bytes(b"an engine")
    return path


def test_an_engine_keeps_its_batch_and_is_not_batched(plan, tmp_path):
    version = triton.write(plan, tmp_path / "models", spec=PLAN)
    assert (version / "model.plan").read_bytes() == b"an engine"
    config = configured(tmp_path / "models" / "cells")
    assert (config.backend, config.platform, config.max_batch_size) == ("tensorrt", "tensorrt_plan", 0)
    assert list(config.input[0].dims) == list(PLAN.new_input().shape)
    assert list(config.output[0].dims) == list(PLAN.new_output().shape)
    assert not config.HasField("dynamic_batching")
    said = ModelSpec.from_json(config.parameters["unetrt"].string_value)
    assert (said.batch, said.classes) == (4, PLAN.classes)


ENGINES = [
    ({"spec": None}, EngineError, "needs its sidecar cells.engine.json beside it"),
    ({"serving": triton.Serving(max_batch_size=4)}, OptionError, "runs on a GPU with the batch it was built for"),
    ({"serving": triton.Serving(device="cpu")}, OptionError, "runs on a GPU"),
    ({"model": "none.plan"}, ModelFileError, "none.plan does not exist"),
]


@pytest.mark.parametrize(("changes", "error", "message"), ENGINES)
def test_engines_that_cannot_be_served(plan, tmp_path, changes, error, message):
    changes = {"spec": PLAN, **changes}
    model = tmp_path / changes.pop("model", plan.name)
    with pytest.raises(error, match=message):
        triton.write(model, tmp_path / "models", **changes)
    assert list(tmp_path.iterdir()) == [plan]


def test_an_engine_takes_16_bit_frames_as_pairs_of_bytes(plan, exports, tmp_path):
    spec = read_spec(exports["uint16"])
    triton.write(plan, tmp_path / "models", spec=spec)
    (tensor,) = configured(tmp_path / "models" / "cells").input
    assert list(tensor.dims) == [*spec.new_input().shape, 2]
    assert triton_proto.DataType.Name(tensor.data_type) == "TYPE_UINT8"


def test_a_further_version_joins_and_what_an_administrator_tuned_stays(exports, tmp_path):
    write("triton", exports["logits"], tmp_path, name="cells", version=3)
    config = tmp_path / "cells" / "config.pbtxt"
    tuned = config.read_text().replace("max_batch_size: 8", "max_batch_size: 2")
    config.write_text(tuned)
    assert write("triton", exports["logits"], tmp_path, name="cells") == tmp_path / "cells" / "4"
    assert write("triton", exports["logits"], tmp_path, name="cells", version=2) == tmp_path / "cells" / "2"
    assert config.read_text() == tuned
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["2", "3", "4", "config.pbtxt"]


BAD = [
    ({"name": "cells", "version": 1}, OutputError, "cells/1 exists.*: use version 2"),
    (
        {"name": "cells", "export": "labels"},
        OptionError,
        "interface of .* is not that of this model.*another name",
    ),
    ({"name": "cells", "max_batch_size": 0}, OptionError, "is not that of this model"),
    ({"name": "other/cells"}, OptionError, "name 'other/cells' does not fit"),
    ({"name": ".cells"}, OptionError, "does not fit"),
    ({"name": "new", "version": 0}, OptionError, "version 0 is ignored by Triton: use 1 or more"),
    ({"name": "new", "max_batch_size": -1}, OptionError, r"max_batch_size must be 0 or more \(got -1\)"),
    ({"name": "new", "instances": 0}, OptionError, r"instances must be 1 or more \(got 0\)"),
    ({"name": "new", "device": "tpu"}, OptionError, "'tpu' is unknown: use one of gpu, cpu"),
    ({"name": "new", "preferred_batch_sizes": (4, 9)}, OptionError, r"\[9\] are not within 1 to 8"),
    (
        {"name": "new", "max_batch_size": 0, "max_queue_delay_microseconds": 5},
        OptionError,
        "need batching: use a max_batch_size",
    ),
    ({"name": "new", "export": None}, ModelFileError, "does not exist"),
    ({"name": "new", "repository": "cells"}, OutputError, "is the folder of one model: give the repository"),
    ({"name": "file"}, OutputError, "file exists: give another name"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_input_is_one_line_and_changes_nothing(exports, tmp_path, changes, error, message):
    write("triton", exports["logits"], tmp_path, name="cells")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    changes = dict(changes)
    model = exports.get(changes.pop("export", "logits"), tmp_path / "none.onnx")
    with pytest.raises(error, match=message) as caught:
        write("triton", model, tmp_path / changes.pop("repository", "."), **changes)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def _with_reshape(path, out):
    """Write a copy whose graph holds its batch as a constant, which no export does."""
    model, shape = editable(path), read_spec(path).new_output().shape
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], [OUTPUT]))
    onnx.save(model, out)
    return out


def _other_output(path, out):
    model = editable(path)
    model.graph.node.append(helper.make_node("Cast", [OUTPUT], ["other"], to=TensorProto.FLOAT))
    model.graph.output[0].name = "other"
    onnx.save(model, out)
    return out


def _input_twice(path, out):
    model = editable(path)
    model.graph.input.append(model.graph.input[0])
    onnx.save(model, out)
    return out


def _no_input(path, out):
    model = editable(path)
    model.graph.ClearField("input")
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("spoil", [_with_reshape, _other_output, _input_twice, _no_input])
def test_a_graph_that_depends_on_its_batch_is_refused(exports, tmp_path, spoil):
    model = spoil(exports["logits"], tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError, match="odd.onnx: .*export it again"):
        write("triton", model, tmp_path / "models")
    assert list(tmp_path.iterdir()) == [model]
