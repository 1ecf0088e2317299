"""Checkpoint in, verified ONNX file out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.export.graph import build_graph
from unetrt.export.parity import DEFAULTS, Parity, Thresholds, compare, require
from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.errors import OptionError
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.planner import Budget, best_tile
from unetrt.runtime.sessions import open_session
from unetrt.runtime.spec import Head, ModelSpec, Precision
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.torch_session import TorchSession

# The gate computes this many pixels of tiles at most, but one frame at least: enough to see a wrong export.
VERIFIED_PIXELS = 4_000_000


@dataclass(frozen=True)
class Options:
    """What kind of file to write.

    Attributes
    ----------
    tile
        Height and width of the input, in pixels.
    precision
        What the graph computes in.
    head
        What comes out.
    batch
        Tiles in one pass.
    """

    tile: tuple[int, int]
    precision: Precision = "fp32"
    head: Head = "logits"
    batch: int = 1


def planned_tile(checkpoint: Checkpoint, frames: Sequence[tuple[int, int]] = (), batch: int = 1) -> tuple[int, int]:
    """Return the best tile for frames of these sizes, or, without any, for those the network was trained on."""
    sizes = list(frames) or [(height, width) for height, width, often in checkpoint.frame_sizes for _ in range(often)]
    if not sizes:
        raise OptionError("the checkpoint does not say what frames it was trained on: give --tile or --frame")
    return best_tile(sizes, checkpoint.shape, Budget(batch=batch)).tile


def export(
    checkpoint: Checkpoint,
    path: str | Path,
    options: Options,
    *,
    frames: Iterable[NDArray[Any]] | None = None,
    thresholds: Thresholds | None = None,
) -> Parity:
    """Write an ONNX file that has passed the parity gate.

    Parameters
    ----------
    checkpoint
        The trained network.
    path
        Where the file goes. It appears when it has passed; on any error nothing is left behind.
    options
        What kind of file.
    frames
        Raw frames (C, H, W) to verify on, of which as many are taken as are worth the time; without any, those that the
        checkpoint holds.
    thresholds
        What the export may differ by; the defaults depend on the precision.

    Returns
    -------
    How far the export is from the network in FP32.

    Raises
    ------
    TileError
        The tile is not legal.
    ParityError
        The export answers differently.
    OutputError
        The file cannot be written.
    """
    if frames is None and not checkpoint.frames:
        raise OptionError("the checkpoint holds no frames to verify the export on: give some with --images")
    spec = spec_for(checkpoint, options)
    with whole_file(path) as temporary:
        onnx.save(build_graph(checkpoint.network(), spec), temporary)
        parity = verify(checkpoint, temporary, spec, checkpoint.frames if frames is None else frames)
        require(parity, thresholds or DEFAULTS[options.precision], f"the {options.precision} export")
    return parity


def spec_for(checkpoint: Checkpoint, options: Options) -> ModelSpec:
    """Return the spec of an export; raises TileError where the tile is not legal."""
    shape, geometry = checkpoint.shape, checkpoint.shape.geometry
    for side in options.tile:
        geometry.require(side)
    return ModelSpec(
        tile=options.tile,
        halo=geometry.halo,
        grid=geometry.grid,
        channels=shape.channels,
        classes=checkpoint.class_names,
        normalisation=checkpoint.normalisation,
        batch=options.batch,
        head=options.head,
        precision=options.precision,
        annotation=checkpoint.annotation,
        separation_border=checkpoint.separation_border,
        network={"depth": shape.depth, "base": shape.base},
        training=checkpoint.training,
        weights_sha256=checkpoint.weights_sha256(),
        written_by=f"unetrt {__version__}",
    )


def verify(checkpoint: Checkpoint, path: Path, spec: ModelSpec, frames: Iterable[NDArray[Any]]) -> Parity:
    """Compare an exported file with its network on raw frames, as many as are worth the time."""
    enough = list(_enough(frames, spec))
    reference = TorchSession(checkpoint.network(), replace(spec, head="logits", precision="fp32"))
    with reference, open_session(path) as exported:
        return compare(reference, exported, enough)


def _enough(frames: Iterable[NDArray[Any]], spec: ModelSpec) -> Iterator[NDArray[Any]]:
    """Yield frames (C, H, W) until their tiles hold `VERIFIED_PIXELS`, the first one always."""
    computed = 0
    for frame in frames:
        yield frame
        plan = TilePlan((frame.shape[-2], frame.shape[-1]), spec.tile, spec.geometry, spec.border)
        computed += -(-len(plan) // spec.batch) * spec.batch * spec.tile[0] * spec.tile[1]
        if computed >= VERIFIED_PIXELS:
            return
