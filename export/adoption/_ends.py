"""The ends of a foreign graph, brought into the form that the rest of adoption reads.

Toolkits differ in how many outputs they write, where the axis of channels lies and what type the image has.
`keep_output` keeps one output and what it needs; `take_float_image` puts an input (N, C, H, W) of floats in front of
one with channels last or with whole grey values; `give_channels_first` turns an output. All change the graph in place.
"""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from unetrt.export.onnx_model import axes_of, inferred
from unetrt.runtime.errors import ModelFileError, OptionError

# Types of whole grey values that an input may have, and the largest of each.
WHOLE: dict[int, int] = {TensorProto.UINT8: 255, TensorProto.UINT16: 65535}
IMAGE = "unetrt:image"  # name of an input in front of the graph's own


def keep_output(model: ModelProto, name: str | None, path: Path) -> None:
    """Remove all outputs but one, and every node, weight and input that it does not need.

    Parameters
    ----------
    model
        The model, functions inlined.
    name
        The output; None for the only one.
    path
        The file, for messages.

    Raises
    ------
    ModelFileError
        The graph does not have exactly one output, and none is named.
    OptionError
        There is no output of this name.
    """
    outputs = {value.name: value for value in model.graph.output}
    listed = ", ".join(f"{each} {_shape(value)}" for each, value in outputs.items()) or "none"
    if name is None and len(outputs) != 1:
        advice = f"choose one with --output {next(iter(outputs))}" if outputs else "export it with one"
        raise ModelFileError(f"{path} has {len(outputs)} outputs ({listed}): {advice}")
    if name is not None and name not in outputs:
        raise OptionError(f"{path} has no output {name!r:.60}: choose one of {listed}")
    kept = outputs[name] if name is not None else next(iter(outputs.values()))
    graph, needed = model.graph, {kept.name}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            nodes.append(node)
    inputs = [value for value in graph.input if value.name in needed]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    parts: tuple[tuple[Any, Sequence[Any]], ...] = (
        (graph.node, nodes[::-1]),
        (graph.input, inputs),
        (graph.initializer, weights),
        (graph.output, [kept]),
    )
    for part, left in parts:
        del part[:]
        part.extend(left)
    del graph.value_info[:]


def _reads(node: NodeProto) -> Iterator[str]:
    """Iterate over the names that a node reads, those inside its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)


def _shape(value: ValueInfoProto) -> str:
    return f"({', '.join(str(axis or '?') for axis in axes_of(value))})"


def is_channels_last(axes: tuple[int | str, ...]) -> bool:
    """Return whether an input's four axes are (N, H, W, C): the last is fixed and the second open, or much longer."""
    first, last = axes[1], axes[3]
    return isinstance(last, int) and (not isinstance(first, int) or last <= 4 < first)


def take_float_image(graph: GraphProto, name: str) -> None:
    """Put an input (N, C, H, W) of floats in front of an input with channels last, or with whole grey values.

    Values for an input of whole numbers are rounded and clipped to its range.
    """
    (old,) = (value for value in graph.input if value.name == name)
    kind, axes = old.type.tensor_type.elem_type, axes_of(old)
    last = is_channels_last(axes)
    if not last and kind not in WHOLE:
        return
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if kind in WHOLE:
        bounds = [helper.make_tensor(f"{IMAGE}:{bound}", TensorProto.FLOAT, [], [bound]) for bound in (0, WHOLE[kind])]
        graph.initializer.extend(bounds)
        steps += [("Round", [], {}), ("Clip", [bound.name for bound in bounds], {})]
    if last:
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    # TensorRT has whole grey values at the edge of a graph only: a graph that converts them to floats gets floats.
    if kind in WHOLE and not all(node.op_type == "Cast" for node in graph.node if name in node.input):
        steps.append(("Cast", [], {"to": kind}))
    ends = [IMAGE, *(f"{IMAGE}:{index}" for index in range(1, len(steps))), name]
    for index, (operator, more, attributes) in enumerate(steps):
        graph.node.insert(index, helper.make_node(operator, [ends[index], *more], [ends[index + 1]], **attributes))
    shape = [axes[index] or None for index in ((0, 3, 1, 2) if last else range(4))]
    new = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT if kind in WHOLE else kind, shape)
    kept = [value for value in graph.input if value.name != name]
    del graph.input[:]
    graph.input.extend([new, *kept])


def give_channels_first(model: ModelProto, size: tuple[int, int]) -> ModelProto:
    """Return a static model whose output is (N, C, H, W), for an image of size (height, width) in pixels."""
    output = model.graph.output[0]
    shape = axes_of(output)
    if len(shape) != 4 or _missing(shape[1:3], size) >= _missing(shape[2:4], size):
        return model
    kind, turned = output.type.tensor_type.elem_type, f"{output.name}:nchw"
    model.graph.node.append(helper.make_node("Transpose", [output.name], [turned], perm=[0, 3, 1, 2]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(turned, kind, [shape[0], shape[3], *shape[1:3]]))
    return inferred(model)


def _missing(sides: tuple[int | str, ...], size: tuple[int, int]) -> float:
    """Return by how many pixels an output of these sides is smaller than the image; infinity if it is larger."""
    margins = [whole - int(side) for whole, side in zip(size, sides, strict=True)]
    return sum(margins) if min(margins) >= 0 else inf
