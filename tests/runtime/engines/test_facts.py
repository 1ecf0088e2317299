import json
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest

from tests.conftest import editable
from tests.runtime.engines.machines import ADA, FACTS, NONE
from unetrt.export.exporter import Options, export
from unetrt.runtime.engines.engine_file import BuildOptions, Facts, facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.records import validated

CHANGES = {
    "weights or graph": {"model": "1" * 64},
    "tile": {"tile": (60, 76)},
    "batch": {"batch": 4},
    "precision": {"precision": "fp16"},
    "TensorRT": {"flavour": "tensorrt-rtx"},
    "TensorRT version": {"version": "11.5.0.1"},
    "GPU": {"machine": replace(ADA, gpu="NVIDIA RTX 4080")},
    "compute capability": {"machine": replace(ADA, capability="8.6")},
    "driver": {"machine": replace(ADA, driver="590.10")},
    "system": {"machine": replace(ADA, os="Windows AMD64")},
    "option workspace": {"options": BuildOptions(workspace=2**30)},
    "option level": {"options": BuildOptions(level=5)},
    "option tf32": {"options": BuildOptions(tf32=True)},
    "option version_compatible": {"options": BuildOptions(version_compatible=True)},
    "option hardware_compatible": {"options": BuildOptions(hardware_compatible="ampere-plus")},
    "option capabilities": {"options": BuildOptions(capabilities=("8.6",))},
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_fact_changes_the_key_and_is_named(name):
    changed = replace(FACTS, **CHANGES[name])
    assert changed.key != FACTS.key
    (difference,) = changed.differences(FACTS)
    assert difference.name == name
    assert str(difference) == f"{name} {difference.there or 'none'} -> {difference.here or 'none'}"


def test_the_changes_above_cover_every_fact():
    facts = {name for name, value in asdict(FACTS).items() if not isinstance(value, dict)}
    facts |= {*asdict(FACTS.machine), *asdict(FACTS.options)}
    assert len(CHANGES) == len(facts)
    assert len({replace(FACTS, **change).key for change in CHANGES.values()}) == len(CHANGES)


def test_the_same_facts_have_the_same_key_in_any_process():
    again = validated(json.loads(json.dumps(asdict(FACTS))), Facts, "facts")
    assert again == FACTS
    assert again.key == FACTS.key == "59b2d88166ce92a84dc98b32ea87aeca"


def facts_of_file(path):
    return facts_of(path, read_spec(path), FLAVOURS[1], NONE, BuildOptions())


def test_a_changed_weight_changes_the_key(tiny_model, tmp_path):
    model = editable(tiny_model)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "net.classify.bias")
    weights = onnx.numpy_helper.to_array(bias).copy()
    weights[0] = np.nextafter(weights[0], np.float32(9))
    bias.CopyFrom(onnx.numpy_helper.from_array(weights, bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    (difference,) = facts_of_file(tmp_path / "model.onnx").differences(facts_of_file(tiny_model))
    assert difference.name == "weights or graph"


def test_a_changed_weight_in_external_data_changes_the_key(tiny_model, tmp_path):
    path, outside = tmp_path / "model.onnx", tmp_path / "weights.bin"
    onnx.save(editable(tiny_model), path, save_as_external_data=True, location=outside.name, size_threshold=0)
    before = facts_of_file(path)
    content = bytearray(outside.read_bytes())
    content[len(content) // 2] ^= 1
    outside.write_bytes(content)
    assert [difference.name for difference in facts_of_file(path).differences(before)] == ["weights or graph"]


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"tile": (76, 76)}, "tile"),
        ({"batch": 2}, "batch"),
        ({"precision": "fp16"}, "precision"),
        ({"head": "labels"}, None),
    ],
)
def test_another_export_has_another_key(tiny_checkpoint, tiny_model, tmp_path, choice, named):
    export(tiny_checkpoint, tmp_path / "other.onnx", replace(Options((60, 76)), **choice))
    differences = facts_of_file(tmp_path / "other.onnx").differences(facts_of_file(tiny_model))
    assert {difference.name for difference in differences} == {named, "weights or graph"} - {None}
