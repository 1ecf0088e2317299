"""A graph with every shape fixed, and ONNX Runtime to run it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray

from unetrt.export.adoption.foreign import Foreign
from unetrt.runtime.errors import BackendUnavailableError, TileError
from unetrt.runtime.sessions.onnxruntime import probe

Size = tuple[int, int]


def fixed(foreign: Foreign, size: Size, batch: int = 1) -> onnx.ModelProto:
    """Return the graph for inputs (batch, C, *size) alone, all shapes inferred and all shape arithmetic folded.

    ONNX Runtime's basic optimisations fold constants and keep to the standard's operators.

    Raises
    ------
    TileError
        The network does not run at this size.
    """
    model = onnx.ModelProto()
    model.CopyFrom(foreign.model)
    graph = model.graph
    (given,) = (value for value in graph.input if value.name == foreign.input.name)
    for dim, side in zip(given.type.tensor_type.shape.dim, (batch, foreign.channels, *size), strict=True):
        dim.dim_value = side
    graph.ClearField("value_info")
    graph.output[0].type.tensor_type.ClearField("shape")
    try:
        folded = _folded(model)
        inferred = onnx.shape_inference.infer_shapes(folded, check_type=True, strict_mode=True, data_prop=True)
        require_static(inferred)
        run(inferred, np.zeros((batch, foreign.channels, *size), np.float32))
    except failures() as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise TileError(f"{foreign.name} does not run on {batch} x {size[0]}x{size[1]} px: {reason}") from error
    return inferred


def require_static(model: onnx.ModelProto) -> None:
    """Raise ValueError where the output's shape is not known."""
    axes = model.graph.output[0].type.tensor_type.shape.dim
    if not axes or not all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in axes):
        raise ValueError("the shape of its output depends on more than the input's shape")


def output_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Return the shape of a static graph's output."""
    return tuple(dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim)


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Return all outputs of a graph for one input (N, C, H, W) float32, which is cast to what the graph takes."""
    return Runner(model)(image)


class Runner:
    """A graph in ONNX Runtime, loaded once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = _session(model)
        self._name = self._session.get_inputs()[0].name
        kind = model.graph.input[0].type.tensor_type.elem_type
        self._dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return all outputs for one input (N, C, H, W) float32."""
        return list(self._session.run(None, {self._name: image.astype(self._dtype)}))


def clean(model: onnx.ModelProto) -> None:
    """Remove, in place, what exporters note for debugging (paths of a machine among it) and unused opsets."""
    model.doc_string = ""
    model.graph.doc_string = ""
    graph = model.graph
    graph.ClearField("metadata_props")
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    used = {node.domain for node in graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        _session(model, path)
        folded = onnx.load(path)
    clean(folded)
    return folded


def _session(model: onnx.ModelProto, keep_folded: Path | None = None) -> Any:
    if reason := probe():
        raise BackendUnavailableError(reason)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: what fails is told in one line
    if keep_folded is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(keep_folded)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def failures() -> tuple[type[Exception], ...]:
    """Return what onnx and ONNX Runtime raise for a graph that does not work."""
    from onnx.checker import ValidationError
    from onnx.shape_inference import InferenceError
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), ValidationError, InferenceError, ValueError)
