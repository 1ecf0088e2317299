"""ONNX models in memory: the operations that the exporter, the gate, adoption and packages share.

A model of unetrt has one input and one output, whose shapes and dtypes follow from its spec (`tensors`), no shape
arithmetic inside, and the spec as JSON in its metadata (`describe`). `save` writes it with its digest. This module
imports no torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import onnx
from onnx import ModelProto, ValueInfoProto

from unetrt.runtime.errors import ModelFileError, one_line
from unetrt.runtime.model.integrity import external_files, with_digest
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import KEY, ModelSpec

FREE = "batch"  # name of a first axis of any length
Axis = int | str


def describe(model: ModelProto, spec: ModelSpec) -> None:
    """Make the spec the only entry of a model's metadata."""
    onnx.helper.set_model_props(model, {KEY: spec.to_json()})


def save(model: ModelProto, path: Path) -> None:
    """Write a model with the digest of its contents."""
    path.write_bytes(with_digest(model.SerializeToString()))


def today() -> str:
    """Return the day in UTC, such as 2026-03-31, as a `Verification` states it."""
    return datetime.now(UTC).date().isoformat()


def axes_of(value: ValueInfoProto) -> tuple[Axis, ...]:
    """Return the declared axes of a value: a length, a name, or "" where neither is declared."""
    return tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)


def copy_of(model: ModelProto) -> ModelProto:
    """Return a copy of a model."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def inferred(model: ModelProto) -> ModelProto:
    """Return a copy with the type and shape of every value; raises InferenceError where they do not follow."""
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def require_clean(model: ModelProto) -> None:
    """Check a model against the ONNX standard; the shape of every value must be inferable and static.

    Raises
    ------
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError
        The exporter has a defect.
    """
    onnx.checker.check_model(model, full_check=True)
    for value in inferred(model).graph.value_info:
        if not all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim):
            raise onnx.checker.ValidationError(f"{value.name} has no static shape")


def strip(model: ModelProto) -> None:
    """Remove, in place, what exporters write for debugging (such as paths of this machine), and unused opsets."""
    graph = model.graph
    graph.ClearField("metadata_props")
    for part in (model, graph):
        part.ClearField("doc_string")
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    used = {node.domain for node in graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def declare_input(model: ModelProto, name: str, axes: Sequence[Axis]) -> None:
    """Declare the first axes of an input, and forget every shape that follows from them."""
    (value,) = (value for value in model.graph.input if value.name == name)
    for dim, axis in zip(value.type.tensor_type.shape.dim, axes, strict=False):
        dim.Clear()
        if isinstance(axis, str):
            dim.dim_param = axis
        else:
            dim.dim_value = axis
    model.graph.ClearField("value_info")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def with_batch(path: Path, batch: int | None) -> ModelProto:
    """Return the model in a file of unetrt, declared for another batch: its graph is the same for every batch.

    Parameters
    ----------
    path
        The ONNX file.
    batch
        Length of the first axis of input and output; None makes it a free axis, and the spec's batch 1.

    Raises
    ------
    ModelFileError
        The file is not a model of unetrt, its graph does not match its spec, or the graph depends on its batch.
    """
    require_safe(path)
    spec = replace(read_spec(path), batch=batch or 1)
    model = onnx.load(path)
    describe(model, spec)
    names = [value.name for value in model.graph.input]
    if len(names) != 1:
        raise ModelFileError(f"{path}: its graph has {len(names)} inputs, not one frame: export it again")
    declare_input(model, names[0], [batch or FREE])
    try:
        model = inferred(model)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = one_line(error, first=True)
        raise ModelFileError(f"{path}: its graph cannot take another batch ({reason}); export it again") from error
    expected = {tensor.name: tensor.shape[1:] for tensor in spec.tensors()}
    for value in (*model.graph.input, *model.graph.output):
        wanted = (batch or FREE, *expected.get(value.name, ()))
        if axes_of(value) != wanted:
            raise ModelFileError(
                f"{path}: with batch {batch or 'free'} its {value.name} has shape {axes_of(value)}, not {wanted}: its "
                "graph depends on its batch or is not the one of its spec; export it again"
            )
    return model


def copy_file(path: Path, target: Path) -> None:
    """Copy a model file; the copy holds all weights, and the digest of its contents.

    Raises
    ------
    ModelFileError
        The file is not safe to open.
    """
    require_safe(path)
    if external_files(path):
        save(onnx.load(path), target)
    else:
        target.write_bytes(with_digest(path.read_bytes()))
