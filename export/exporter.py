"""Checkpoint in, verified ONNX file out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.export.graph import build_graph, describe, require_clean
from unetrt.export.parity import DEFAULTS, Parity, Thresholds
from unetrt.export.quantisation import quantised
from unetrt.export.verification import verify
from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.errors import OptionError
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.planner import Budget, best_tile
from unetrt.runtime.spec import Head, InputType, ModelSpec, Precision
from unetrt.trainer.checkpoint import Checkpoint

# The gate computes this many pixels of tiles at most, but one frame at least: enough to see a wrong export.
VERIFIED_PIXELS = 4_000_000

Frames = Sequence[NDArray[Any]]


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
    input
        What goes in: `float32` normalised grey values, `uint8` or `uint16` raw ones.
    normalisation
        `fixed` freezes a normalisation that is measured on each frame at what the verified frames have; None keeps it.
    """

    tile: tuple[int, int]
    precision: Precision = "fp32"
    head: Head = "logits"
    batch: int = 1
    input: InputType = "float32"
    normalisation: Literal["fixed"] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"a batch of {self.batch} tiles is none: use 1 or more")


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
        checkpoint holds. int8 takes its ranges, and a frozen normalisation its constants, from the same frames.
    thresholds
        What the export may differ by; the defaults depend on the precision.

    Returns
    -------
    How far the export is from the network in FP32.

    Raises
    ------
    TileError
        The tile is not legal.
    OptionError
        There are no frames, or the input needs constants that the normalisation does not have.
    ParityError
        The export answers differently.
    OutputError
        The file cannot be written.
    """
    if frames is None and not checkpoint.frames:
        raise OptionError("the checkpoint holds no frames to verify the export on: give some with --images")
    for side in options.tile:
        checkpoint.shape.geometry.require(side)
    enough = list(_enough(checkpoint.frames if frames is None else frames, checkpoint, options))
    spec = spec_for(checkpoint, options, enough)
    with whole_file(path) as temporary:
        onnx.save(_model(checkpoint, spec, enough), temporary)
        return verify(checkpoint, temporary, enough, thresholds or DEFAULTS[options.precision])


def spec_for(checkpoint: Checkpoint, options: Options, frames: Frames = ()) -> ModelSpec:
    """Return the spec of an export, with a normalisation frozen on raw frames (C, H, W) where that is asked for.

    Raises
    ------
    TileError
        The tile is not legal.
    OptionError
        The graph cannot normalise what goes in.
    """
    shape, geometry = checkpoint.shape, checkpoint.shape.geometry
    return ModelSpec(
        tile=options.tile,
        halo=geometry.halo,
        grid=geometry.grid,
        channels=shape.channels,
        classes=checkpoint.class_names,
        normalisation=_normalisation(checkpoint, options, frames),
        batch=options.batch,
        head=options.head,
        precision=options.precision,
        input_dtype=options.input,
        annotation=checkpoint.annotation,
        separation_border=checkpoint.separation_border,
        network={"depth": shape.depth, "base": shape.base},
        training=checkpoint.training,
        weights_sha256=checkpoint.weights_sha256(),
        written_by=f"unetrt {__version__}",
    )


def _normalisation(checkpoint: Checkpoint, options: Options, frames: Frames) -> Normalisation:
    trained = checkpoint.normalisation
    if trained.mode == "fixed":
        return trained
    if options.normalisation == "fixed":
        return trained.frozen(frames)
    if options.input != "float32":
        raise OptionError(
            f"--input {options.input} normalises in the graph, which sees one tile, but this network's normalisation "
            f"({trained.mode}) is measured on each whole frame: add --normalisation fixed, which freezes it, or keep "
            "--input float32"
        )
    return trained


def _model(checkpoint: Checkpoint, spec: ModelSpec, frames: Frames) -> onnx.ModelProto:
    model = build_graph(checkpoint.network(), spec)
    if spec.precision != "int8":
        return model
    model = quantised(model, spec, frames)
    describe(model, spec)
    require_clean(model)
    return model


def _enough(frames: Iterable[NDArray[Any]], checkpoint: Checkpoint, options: Options) -> Iterator[NDArray[Any]]:
    """Yield frames (C, H, W) until their tiles hold `VERIFIED_PIXELS`, the first one always."""
    computed = 0
    for frame in frames:
        yield frame
        plan = TilePlan((frame.shape[-2], frame.shape[-1]), options.tile, checkpoint.shape.geometry)
        computed += -(-len(plan) // options.batch) * options.batch * options.tile[0] * options.tile[1]
        if computed >= VERIFIED_PIXELS:
            return
