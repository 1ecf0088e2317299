"""The graph of a foreign network with our edges: our names, the core alone, what the head promises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from unetrt.export.adoption.static_graph import output_shape
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT, ModelSpec

PREFIX = "net/"  # of all names inside the network, so that none of them meets one of ours
SQUASHED = ("Sigmoid", "HardSigmoid")
SCORES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def adapted(network: ModelProto, spec: ModelSpec) -> ModelProto:
    """Return a model of ours around a foreign network.

    Parameters
    ----------
    network
        Static, for the spec's batch and tile.
    spec
        What the model shall be.

    Raises
    ------
    OptionError
        The network's output is not what the spec's head and classes say.
    """
    head = _head(network, spec)
    model = onnx.compose.add_prefix(network, PREFIX)
    edges = _Edges(model)
    edges.feed()
    head(edges, edges.crop(output_shape(network), spec), spec)
    edges.finish(spec)
    del model.metadata_props[:]
    helper.set_model_props(model, {KEY: spec.to_json()})
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Edges:
    """What is put before and behind a network, in place."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._kinds = [ends[0].type.tensor_type.elem_type for ends in (model.graph.input, model.graph.output)]

    def feed(self) -> None:
        """Give the input our name and float32."""
        name = self._graph.input[0].name
        if self._kinds[0] != TensorProto.FLOAT:
            self._graph.node.insert(0, helper.make_node("Cast", [INPUT], [name], to=self._kinds[0]))
            return
        for node in self._graph.node:
            node.input[:] = [INPUT if given == name else given for given in node.input]

    def crop(self, shape: tuple[int, ...], spec: ModelSpec) -> str:
        """Cut the core out of the middle of the network's output, as float32 where it is scores; return its name."""
        core = self._graph.output[0].name
        starts = [(side - kept) // 2 for side, kept in zip(shape[-2:], spec.core, strict=True)]
        if any(starts):
            stops = [start + kept for start, kept in zip(starts, spec.core, strict=True)]
            bounds = [self.constant(np.array(part, np.int64)) for part in (starts, stops, [-2, -1])]
            core = self.add("Slice", [core, *bounds], "core")
        if self._kinds[1] in SCORES and self._kinds[1] != TensorProto.FLOAT:
            core = self.add("Cast", [core], "core32", to=TensorProto.FLOAT)
        return str(core)

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"constant{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self._graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def finish(self, spec: ModelSpec) -> None:
        """Declare input and output as the spec has them."""
        ends = ((self._graph.input, INPUT, spec.new_input()), (self._graph.output, OUTPUT, spec.new_output()))
        for declared, name, array in ends:
            del declared[:]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            declared.append(helper.make_tensor_value_info(name, kind, array.shape))


# Operators that hand on values as they are.
PASSING = ("Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
Finish = Callable[[_Edges, str, ModelSpec], None]


def _all_classes(edges: _Edges, core: str, spec: ModelSpec) -> None:
    """One channel a class: as it is, or the best of them."""
    if spec.head != "labels":
        edges.add("Identity", [core], OUTPUT)
        return
    best = edges.add("ArgMax", [core], "best", axis=1, keepdims=0) if len(spec.classes) > 2 else _better(edges, core)
    edges.add("Cast", [best], OUTPUT, to=TensorProto.UINT8)


def _better(edges: _Edges, core: str) -> str:
    """Compare two classes, as files of our own networks do; return the name of a mask, true where the second wins."""
    pair = ("background", "foreground")
    indices = [edges.constant(np.array(index, np.int64)) for index in range(2)]
    scores = [edges.add("Gather", [core, index], name, axis=1) for index, name in zip(indices, pair, strict=True)]
    return edges.add("Less", scores, "better")


def _one_logit(edges: _Edges, core: str, spec: ModelSpec) -> None:  # noqa: ARG001
    """z, of which a sigmoid makes the probability of the foreground: soft-max makes the same of (0, z)."""
    edges.add("Concat", [edges.add("Sub", [core, core], "background"), core], OUTPUT, axis=1)


def _one_probability(edges: _Edges, core: str, spec: ModelSpec) -> None:  # noqa: ARG001
    """p, of the foreground: (1 - p, p)."""
    one = edges.constant(np.array(1, np.float32))
    edges.add("Concat", [edges.add("Sub", [one, core], "background"), core], OUTPUT, axis=1)


def _labels(edges: _Edges, core: str, spec: ModelSpec) -> None:
    """One label a pixel, of whatever type, with or without an axis of channels."""
    shape = edges.constant(np.array(spec.new_output().shape, np.int64))
    edges.add("Cast", [edges.add("Reshape", [core, shape], "flat")], OUTPUT, to=TensorProto.UINT8)


def gives_scores(network: ModelProto) -> bool:
    """Tell whether a static network gives floats (N, C, H, W), and no labels."""
    kind = network.graph.output[0].type.tensor_type.elem_type
    return len(output_shape(network)) == 4 and kind in SCORES


def _head(network: ModelProto, spec: ModelSpec) -> Finish:
    """Return what makes the spec's output of the network's; raises OptionError where that cannot be."""
    shape, classes = output_shape(network), len(spec.classes)
    channels = shape[1] if len(shape) == 4 else 1
    if not gives_scores(network):
        if spec.head != "labels" or channels != 1:
            raise OptionError(f"the output, shape {shape}, has one label a pixel, no scores: use --head labels")
        return _labels
    if channels == 1 and spec.head == "labels":
        raise OptionError("the output is one channel of scores, no labels: use --head logits or --head probabilities")
    if spec.head == "logits" and channels == 1 and _made_by(network) in SQUASHED:
        raise OptionError("the output is a sigmoid's, one probability a pixel: use --head probabilities")
    if channels == 1 and classes == 2:
        return _one_logit if spec.head == "logits" else _one_probability
    if channels != classes:
        wanted = "two, background first, for one" if channels == 1 else f"{channels}, background first"
        raise OptionError(f"{classes} classes are named, the output has {channels} channels: name {wanted}")
    return _all_classes


def _made_by(network: ModelProto) -> str:
    """Return the operator that makes the values of the network's output."""
    made = {name: node for node in network.graph.node for name in node.output}
    node = made.get(network.graph.output[0].name)
    while node is not None and node.op_type in PASSING:
        node = made.get(node.input[0])
    return node.op_type if node is not None else ""
