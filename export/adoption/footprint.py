"""The footprint of a network: which values each pixel can reach, whatever the weights' signs and sizes.

From a static graph this makes a second one, in float32, that computes with "touched" (1) and "untouched" (0). Feed it
an image that is 1 in one place: its output is 1 exactly where that place can have an influence. Nothing is hidden as
with noise: no ReLU is dead, no sum cancels, no weight at the rim of a kernel is too small to see, because after every
sum the values are 0 or 1 again. A weight that is exactly zero carries no influence, and counts as none.

Each operator has one rule; one without a rule is refused, since its reach would be a guess.
"""

from dataclasses import dataclass

import numpy as np
import onnx.reference
from onnx import ModelProto, NodeProto

from unetrt.export.adoption.footprint_graph import FootprintGraph
from unetrt.export.adoption.footprint_rules import RULES
from unetrt.export.adoption.foreign import STANDARD


@dataclass(frozen=True)
class Footprint:
    """A network that computes with touched (1) and untouched (0).

    Attributes
    ----------
    model
        Takes float32 (1, C, h, w) of zeros and ones; its first output has the original's shape. For each of the mixers
        two more outputs follow, scalars: the share that is touched of what goes in, and of what comes out.
    mixers
        The operators that may see the whole image, as `Operator "name"`, in the graph's order.
    """

    model: ModelProto
    mixers: tuple[str, ...]


def footprint(model: ModelProto, name: str) -> Footprint:
    """Return the footprint of a static graph with its constants folded and all shapes inferred.

    Parameters
    ----------
    model
        The graph.
    name
        The file's name, for messages.

    Raises
    ------
    ModelFileError
        An operator has no rule, or one that no tile can compute.
    """
    graph = FootprintGraph(model, name)
    for node in model.graph.node:
        if graph.data(node):
            _rewrite(graph, node)
        else:
            _evaluate(graph, node)
    return Footprint(graph.finished(), tuple(graph.mixers))


def _rewrite(graph: FootprintGraph, node: NodeProto) -> None:
    rule = RULES.get(node.op_type) if node.domain in STANDARD else None
    if rule is None:
        graph.refuse(node, "is not among the operators whose reach is known here: export the network without it")
    rule(graph, node)


def _evaluate(graph: FootprintGraph, node: NodeProto) -> None:
    """Compute what does not depend on the image: weights that are stored quantised, say."""
    given = {name: graph.constants[name] for name in node.input if name in graph.constants}
    if set(node.input) - {""} - set(given):
        graph.refuse(node, "takes a secondary output of another operator, whose reach is not known here")
    results = onnx.reference.ReferenceEvaluator(node).run(None, given)
    graph.constants.update(zip(node.output, map(np.asarray, results), strict=True))
