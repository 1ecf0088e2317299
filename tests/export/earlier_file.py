"""A labels file in the form of earlier versions: two Slices a crop, whose ends know the tile, and ArgMax."""

import onnx
import onnx.parser

from unetrt.export.onnx_model import describe
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import ModelSpec

SHAPE = UNetShape(depth=1, base=2)
SPEC = ModelSpec((20, 24), SHAPE.geometry.halo, SHAPE.geometry.grid, head="labels")
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
main_graph (float[1, 1, 20, 24] frame) => (uint8[1, 4, 8] scores)
    <int64[1] four = {4}, int64[1] last_row = {12}, int64[1] last_column = {16},
     int64[1] rows = {2}, int64[1] columns = {3}, int64[1] one = {1}>
{
    a = Conv(frame, contracting_0_0_weight, contracting_0_0_bias)
    b = Relu(a)
    c = Conv(b, contracting_0_2_weight, contracting_0_2_bias)
    skip = Relu(c)
    pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(skip)
    d = Conv(pooled, contracting_1_0_weight, contracting_1_0_bias)
    e = Relu(d)
    f = Conv(e, contracting_1_2_weight, contracting_1_2_bias)
    g = Relu(f)
    h = ConvTranspose<strides = [2, 2]>(g, up_0_weight, up_0_bias)
    up = Relu(h)
    some = Slice(skip, four, last_row, rows, one)
    cropped = Slice(some, four, last_column, columns, one)
    both = Concat<axis = 1>(cropped, up)
    i = Conv(both, expanding_0_0_weight, expanding_0_0_bias)
    j = Relu(i)
    k = Conv(j, expanding_0_2_weight, expanding_0_2_bias)
    l = Relu(k)
    logits = Conv(l, classify_weight, classify_bias)
    best = ArgMax<axis = 1, keepdims = 0>(logits)
    scores = Cast<to = 2>(best)
}
"""


def earlier_model(net):
    """Return the labels model of a network of `SHAPE`, as earlier versions wrote it."""
    model = onnx.parser.parse_model(GRAPH)
    for name, weight in net.state_dict().items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), name.replace(".", "_")))
    describe(model, SPEC)
    return model
