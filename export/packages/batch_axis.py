"""Another batch for an exported graph: it holds no arithmetic on shapes, so only its declared sizes change."""

import shutil
from dataclasses import replace
from pathlib import Path

import onnx

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import external_files, require_safe
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT

FREE = "batch"  # the name of a first axis of any length


def with_batch(path: Path, batch: int | None) -> onnx.ModelProto:
    """Return the model at `path`, an ONNX file of ours, for another batch.

    Parameters
    ----------
    path
        The ONNX file.
    batch
        Length of the first axis of input and output; None leaves it to the caller of the graph. The spec then says 1.

    Raises
    ------
    ModelFileError
        It is no model of ours, its graph does not compute what its spec says, or it computes with its batch.
    """
    require_safe(path)
    spec = replace(read_spec(path), batch=batch or 1)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: spec.to_json()})
    _declare(model, batch)
    expected = {INPUT: spec.new_input().shape[1:], OUTPUT: spec.new_output().shape[1:]}
    inferred = _inferred(model, path)
    for value in (*inferred.graph.input, *inferred.graph.output):
        given = tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        wanted = (batch or FREE, *expected.get(value.name, ()))
        if given != wanted:
            raise ModelFileError(
                f"{path}: with batch {batch or 'free'} its {value.name} has shape {given}, not {wanted}: its graph "
                "depends on its batch or is not the one of its spec; export it again"
            )
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def copy_model(path: Path, target: Path) -> None:
    """Write a model file to another place, with what it keeps in files beside it in itself."""
    if external_files(path):
        onnx.save(onnx.load(path), target)
    else:
        shutil.copyfile(path, target)


def _declare(model: onnx.ModelProto, batch: int | None) -> None:
    """Set the input's first axis, and forget all that follows from it."""
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    axis.Clear()
    if batch is None:
        axis.dim_param = FREE
    else:
        axis.dim_value = batch
    model.graph.ClearField("value_info")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _inferred(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model with all shapes that follow from its input's."""
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{path}: its graph cannot take another batch ({reason}); export it again") from error
