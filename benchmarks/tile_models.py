"""Model files of one network with different tiles, for timing only."""

from pathlib import Path

import onnx

from unetrt.export.exporter import Options, spec_for
from unetrt.export.graph import build_graph
from unetrt.export.onnx_model import describe, require_clean
from unetrt.runtime.spec import ModelSpec, Precision
from unetrt.trainer.checkpoint import Checkpoint


class TileModels:
    """Writes a network's model files, which pass no parity gate.

    Parameters
    ----------
    checkpoint
        The network.
    precision, batch
        As `export.Options` has them; int8 needs frames and is refused there.
    folder
        Where the files go.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision, batch: int, folder: Path) -> None:
        self.checkpoint, self.precision, self.batch, self.folder = checkpoint, precision, batch, folder
        self._exported: onnx.ModelProto | None = None

    def write(self, tile: tuple[int, int]) -> Path:
        """Return the ONNX file of a (height, width) tile."""
        path = self.folder / f"{tile[0]}x{tile[1]}.onnx"
        spec = spec_for(self.checkpoint, Options(tile, precision=self.precision, batch=self.batch))
        if self._exported is None:
            self._exported = build_graph(self.checkpoint.network(), spec)
        onnx.save(retiled(self._exported, spec), path)
        return path


def retiled(exported: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return an exported U-Net with the tile of another spec, in a tenth of the time of another export.

    Only the crops of the skips know the tile, by where they end: as far from the end as they begin from the beginning,
    whatever the tile.
    """
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    model.graph.ClearField("value_info")
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Slice":
            ends = onnx.numpy_helper.from_array(-constants[node.input[1]], f"{node.output[0]}.ends")
            model.graph.initializer.append(ends)
            node.input[2] = ends.name
    for value, (height, width) in zip((*model.graph.input, *model.graph.output), (spec.tile, spec.core), strict=True):
        axes = value.type.tensor_type.shape.dim
        axes[-2].dim_value, axes[-1].dim_value = height, width
    describe(model, spec)
    require_clean(model)
    return model
