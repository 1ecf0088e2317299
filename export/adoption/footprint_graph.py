"""A graph under construction that computes with touched (1) and untouched (0); see `footprint`."""

from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from unetrt.export.adoption.foreign import STANDARD
from unetrt.runtime.errors import ModelFileError

Attributes = Iterable[onnx.AttributeProto]


class FootprintGraph:
    """What the rules of the operators write to, and what they may ask of the original graph.

    Parameters
    ----------
    model
        The original: static, all shapes inferred.
    name
        The file's name, for messages.

    Attributes
    ----------
    opset
        Version of the standard's operators in both graphs.
    constants
        Values that do not depend on the image, by name.
    touched
        Names of those that do.
    mixers
        The operators that may see the whole image, as `Operator "name"`, in the graph's order.
    """

    def __init__(self, model: ModelProto, name: str) -> None:
        graph = model.graph
        self.name = name
        self.opset = next(opset.version for opset in model.opset_import if opset.domain in STANDARD)
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.touched = {graph.input[0].name}
        self.mixers: list[str] = []
        self._original = model
        self._nodes: list[NodeProto] = []
        self._kept: dict[str, NDArray[Any]] = {}
        self._probes: list[onnx.ValueInfoProto] = []
        values = (*graph.value_info, *graph.input, *graph.output)
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}

    def data(self, node: NodeProto) -> list[str]:
        """Return those inputs that depend on the image."""
        return [name for name in node.input if name in self.touched]

    def rank(self, name: str) -> int:
        """Return the number of axes of a value of the original graph."""
        return self._ranks[name]

    def constant(self, node: NodeProto, index: int) -> NDArray[Any] | None:
        """Return the constant input of that number, or None where it is left out or depends on the image."""
        return self.constants.get(node.input[index]) if index < len(node.input) else None

    def emit(self, operator: str, inputs: list[str], outputs: list[str], attributes: Attributes = ()) -> None:
        """Add a node."""
        node = helper.make_node(operator, inputs, outputs)
        node.attribute.extend(attributes)
        self._nodes.append(node)
        self.touched.update(outputs)

    def keep(self, array: NDArray[Any], like: str) -> str:
        """Add a constant and return its name."""
        name = f"{like}:{len(self._kept)}"
        self._kept[name] = array
        return name

    def touch(self, operator: str, inputs: list[str], node: NodeProto) -> None:
        """Add a node that sums, with the attributes of `node`, and make its output zeros and ones."""
        out = node.output[0]
        self.emit(operator, inputs, [f"{out}:sum"], node.attribute)
        self.emit("Sign", [f"{out}:sum"], [out])

    def reduce(self, name: str, axes: list[int] | None, keepdims: bool, out: str) -> None:
        """Add a node that is 1 where anything along `axes`, or along all, is."""
        attributes = [helper.make_attribute("keepdims", int(keepdims))]
        inputs = [name]
        if axes is not None and self.opset < 18:
            attributes.append(helper.make_attribute("axes", axes))
        elif axes is not None:
            inputs.append(self.keep(np.array(axes, np.int64), out))
        self.emit("ReduceMax", inputs, [out], attributes)

    def watch(self, node: NodeProto, before: str, after: str) -> None:
        """Note an operator that may see the whole image, and how much of it was touched before and after."""
        self.mixers.append(f"{node.op_type} {node.name!r}")
        for probe, name in ((f"{after}:before", before), (f"{after}:after", after)):
            self.emit("ReduceMean", [name], [probe], [helper.make_attribute("keepdims", 0)])
            self._probes.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))

    def refuse(self, node: NodeProto, why: str) -> NoReturn:
        """Raise ModelFileError."""
        raise ModelFileError(f"{self.name}: {node.op_type} {node.name!r} {why}")

    def finished(self) -> ModelProto:
        """Return the graph: the image in, the answer and then the probes of each mixer out, all float32."""
        graph = self._original.graph
        ends = [_as_float(value) for value in (graph.input[0], graph.output[0])]
        constants = [numpy_helper.from_array(array, name) for name, array in self._kept.items()]
        made = helper.make_graph(self._nodes, "footprint", ends[:1], [*ends[1:], *self._probes], constants)
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(made, opset_imports=opset, ir_version=self._original.ir_version)


def _as_float(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape)
