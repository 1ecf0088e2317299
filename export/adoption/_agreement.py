"""A foreign network as a model of unetrt, and the gate that proves its tiles exact.

`adapted` renames the input, crops the core out of the network's output and adds the head that the spec promises.
`require_agreement` runs tiles of noise through the runtime and compares them with one pass over a larger image, or with
each other where the network runs on one size only.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.compose
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from unetrt.export.adoption._foreign import Runner, Size, Sizes, output_shape
from unetrt.export.adoption._output import SCORES, Kind, noise, not_finite
from unetrt.export.onnx_model import describe, inferred, strip
from unetrt.runtime.errors import ParityError, TileError
from unetrt.runtime.model.spec import INPUT, OUTPUT, Head, ModelSpec
from unetrt.runtime.sessions import Session

Array = NDArray[Any]

PREFIX = "net/"  # of all names inside the network, so that they do not clash with names of unetrt

# Largest difference, as a share of the output's range: float32 differs by the order of sums, coarser types by a step.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2, "int8": 2e-2}
# The range of an output is taken as at least this share of its largest value: float32 resolves no finer difference
# between values that hardly vary around a large one.
FLAT = 0.02


def adapted(network: ModelProto, spec: ModelSpec, kind: Kind) -> ModelProto:
    """Return a model of unetrt made of a foreign network.

    Parameters
    ----------
    network
        The static graph for the spec's batch and tile.
    spec
        Spec of the new model.
    kind
        The kind of the network's output, which fits the spec's head.
    """
    edges = _Edges(onnx.compose.add_prefix(network, PREFIX))
    edges.rename_input()
    HEADS[kind, spec.head](edges, edges.crop(spec, kind), spec)
    model = edges.finished(spec)
    describe(model, spec)
    model = inferred(model)
    onnx.checker.check_model(model, full_check=True)
    strip(model)
    return model


class _Edges:
    """Adds nodes in front of and behind the network in `model`, in place."""

    def __init__(self, model: ModelProto) -> None:
        self._model, self._graph = model, model.graph
        self._output = str(model.graph.output[0].name)
        self._shape = output_shape(model)
        kinds = (ends[0].type.tensor_type.elem_type for ends in (model.graph.input, model.graph.output))
        self._input_kind, self._output_kind = kinds

    def rename_input(self) -> None:
        """Give the input unetrt's name and float32."""
        name = self._graph.input[0].name
        if self._input_kind != TensorProto.FLOAT:
            self._graph.node.insert(0, helper.make_node("Cast", [INPUT], [name], to=self._input_kind))
            return
        for node in self._graph.node:
            node.input[:] = [INPUT if given == name else given for given in node.input]

    def crop(self, spec: ModelSpec, kind: Kind) -> str:
        """Cut the core out of the middle of the network's output; scores become float32 (N, C, H, W).

        Returns the name of the result.
        """
        core = self._output
        starts = [(side - kept) // 2 for side, kept in zip(self._shape[-2:], spec.core, strict=True)]
        if any(starts):
            stops = [start + kept for start, kept in zip(starts, spec.core, strict=True)]
            bounds = [self.constant(np.array(part, np.int64)) for part in (starts, stops, [-2, -1])]
            core = self.add("Slice", [core, *bounds], "core")
        if self._output_kind in SCORES and self._output_kind != TensorProto.FLOAT:
            core = self.add("Cast", [core], "core32", to=TensorProto.FLOAT)
        if kind == "channel" and len(self._shape) == 3:
            shape = self.constant(np.array([spec.batch, 1, *spec.core], np.int64))
            core = self.add("Reshape", [core, shape], "channel")
        return core

    def constant(self, array: Array) -> str:
        """Add a constant and return its name."""
        name = f"constant{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self._graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def finished(self, spec: ModelSpec) -> ModelProto:
        """Declare input and output as the spec promises them, and return the model."""
        ends = zip((self._graph.input, self._graph.output), spec.tensors(), strict=True)
        for declared, (name, shape, dtype) in ends:
            del declared[:]
            declared.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape))
        return self._model


AddHead = Callable[[_Edges, str, ModelSpec], object]


def _all_classes(edges: _Edges, core: str, spec: ModelSpec) -> None:
    """Take one channel for each class as it is, or the index of the highest for a labels head."""
    if spec.head != "labels":
        edges.add("Identity", [core], OUTPUT)
        return
    if len(spec.classes) > 2:
        best = edges.add("ArgMax", [core], "best", axis=1, keepdims=0)
    else:  # as in a labels head of unetrt's own networks
        indices = [edges.constant(np.array(index, np.int64)) for index in range(2)]
        names = zip(indices, ("background", "foreground"), strict=True)
        best = edges.add("Less", [edges.add("Gather", [core, index], name, axis=1) for index, name in names], "better")
    edges.add("Cast", [best], OUTPUT, to=TensorProto.UINT8)


def _one_logit(edges: _Edges, core: str, _spec: ModelSpec) -> None:
    """Turn one logit z into (0, z), whose soft-max is the sigmoid of z."""
    edges.add("Concat", [edges.add("Sub", [core, core], "background"), core], OUTPUT, axis=1)


def _one_probability(edges: _Edges, core: str, _spec: ModelSpec) -> None:
    """Turn one foreground probability p into (1 - p, p)."""
    one = edges.constant(np.array(1, np.float32))
    edges.add("Concat", [edges.add("Sub", [one, core], "background"), core], OUTPUT, axis=1)


def _labels(edges: _Edges, core: str, spec: ModelSpec) -> None:
    """Convert labels of any type, with or without an axis of channels, to uint8 (batch, h', w')."""
    shape = edges.constant(np.array(spec.tensors().output.shape, np.int64))
    edges.add("Cast", [edges.add("Reshape", [core, shape], "flat")], OUTPUT, to=TensorProto.UINT8)


# Kind of the output and head -> the function that adds the head.
HEADS: dict[tuple[Kind, Head], AddHead] = {
    ("labels", "labels"): _labels,
    ("channel", "logits"): _one_logit,
    ("channel", "probabilities"): _one_probability,
    **{("channels", head): _all_classes for head in ("logits", "probabilities", "labels")},
}


def require_agreement(session: Session, sizes: Sizes, kind: Kind) -> float:
    """Compare two tiles of noise of several amplitudes, once a grid apart and once three quarters of a core.

    Parameters
    ----------
    session
        The adopted file in the runtime; with a head of scores if the network gives scores.
    sizes
        The network it was made from. If it runs on larger images, the reference is one pass over an image that holds
        both tiles; otherwise the tiles are compared with each other where they overlap.
    kind
        The kind of the network's output.

    Returns
    -------
    The largest difference, as a share of the output's range; for labels, the share of pixels that differ.

    Raises
    ------
    ParityError
        The tiles differ by more than `TOLERANCE`, or the output is the same at every pixel, which verifies nothing.
    TileError
        The core is too small to compare tiles of a network that runs on no larger image.
    """
    spec = session.spec
    if not sizes.step and min(spec.core) <= spec.grid:
        raise TileError(
            f"a core of {spec.core[0]}x{spec.core[1]} px is too small: cores of tiles {spec.grid} px apart do not "
            f"overlap, and {sizes.foreign.name} runs on no larger image: export it with dynamic axes, or a larger input"
        )
    # A drift that is small from pixel to pixel adds up over most of a core.
    far = [max(spec.grid, 3 * side // 4 // spec.grid * spec.grid) for side in spec.core]
    worst, varies = 0.0, False
    for shift in dict.fromkeys(((spec.grid, spec.grid), (far[0], far[1]))):
        for image in noise(spec, (spec.tile[0] + shift[0], spec.tile[1] + shift[1])):
            tiles = [_answer(session, image, origin) for origin in ((0, 0), shift)]
            varies = varies or bool((tiles[0] != tiles[0][..., :1, :1]).any())
            worst = max(worst, *_differences(tiles, _whole(sizes, spec, kind, image), spec, shift))
    if not varies:
        raise ParityError(
            "the output for noise is the same at every pixel, so that equal tiles verify nothing: check the weights "
            "and --normalisation; where the output is labels, adopt a file whose output is the scores"
        )
    if not worst <= TOLERANCE[spec.precision]:
        other = "a pass over a larger image" if sizes.step else "each other"
        raise ParityError(
            f"tiles differ by {worst:.2g} of the output's range from {other} (at most {TOLERANCE[spec.precision]:g}): "
            "the output depends on the position of a pixel in the tile, or on the other tiles of the batch. Either the "
            f"grid is a multiple of {spec.grid} (give it with --grid, and a multiple of it with --tile), or the output "
            "is coarser than the image, or the network has constants of the tile's size and cannot be tiled"
        )
    return worst


def _answer(session: Session, image: Array, origin: Size) -> Array:
    """Return the runtime's output for the tile at `origin`, (classes, h', w') or (h', w')."""
    (top, left), (height, width) = origin, session.spec.tile
    window = (..., slice(top, top + height), slice(left, left + width))
    batch = session.spec.new_input()
    # The other slots of the batch must not matter: they hold another part of the image each time.
    batch[:] = image[:, ::-1, ::-1][window]
    batch[-1] = image[window]
    answer: Array = session.run(batch)[-1]
    return answer


def _whole(sizes: Sizes, spec: ModelSpec, kind: Kind, image: Array) -> Array | None:
    """Return the output of one pass over the image, or None where the network runs on the tile alone."""
    if not sizes.step:
        return None
    height, width = image.shape[-2:]
    large = replace(spec, tile=(height, width), batch=1)
    try:
        network = sizes.at(large.tile)
    except TileError as error:
        raise TileError(
            f"{sizes.foreign.name} does not run on {height}x{width} px, {spec.grid} px more than a tile or a multiple "
            "of it: its grid is larger; give --grid"
        ) from error
    answer: Array = Runner(adapted(network, large, kind))(image[None])[0][0]
    return answer


def _differences(tiles: list[Array], whole: Array | None, spec: ModelSpec, shift: Size) -> Iterator[float]:
    """Yield the difference of each tile from the whole, or of the tiles from each other where they overlap."""
    (height, width), (down, right) = spec.core, shift
    if whole is None:
        yield _difference(tiles[0][..., down:, right:], tiles[1][..., : height - down, : width - right])
        return
    for (top, left), tile in zip(((0, 0), (down, right)), tiles, strict=True):
        yield _difference(whole[..., top : top + height, left : left + width], tile)


def _difference(expected: Array, given: Array) -> float:
    """Return the largest difference as a share of the output's range; for labels, the share of pixels that differ."""
    if expected.dtype == np.uint8:
        return float((expected != given).mean())
    if not (np.isfinite(expected).all() and np.isfinite(given).all()):
        raise not_finite()
    size = max(float(np.ptp(expected)), FLAT * float(np.abs(expected).max()))
    return float(np.abs(expected - given).max()) / size if size else 0.0
