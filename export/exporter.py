"""Checkpoint in, verified ONNX file out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.export.graph import build_graph, describe, require_clean
from unetrt.export.options import Options
from unetrt.export.parity import DEFAULTS, Parity, Thresholds
from unetrt.export.quantisation import quantised
from unetrt.export.verification import verify
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.geometry.planner import Budget, best_tile
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.checkpoint import Checkpoint

# The gate computes this many pixels of tiles at most, but one frame at least: enough to see a wrong export.
VERIFIED_PIXELS = 4_000_000

Frames = Sequence[NDArray[Any]]


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
        checkpoint holds. int8 takes its ranges, and a frozen normalisation its constants, from every other one.
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
        There are too few frames, or the input needs constants that the normalisation does not have.
    FrameError
        A frame has another number of channels, or pixels that the export cannot take.
    ParityError
        The export answers differently.
    OutputError
        The file cannot be written.
    """
    for side in options.tile:
        checkpoint.shape.geometry.require(side)
    verified = _verified(checkpoint, options, checkpoint.frames if frames is None else frames)
    # What is measured on some frames must prove itself on others too.
    measured = verified[::2]
    spec = spec_for(checkpoint, options, measured)
    with whole_file(path) as temporary:
        onnx.save(_model(checkpoint, spec, measured), temporary)
        parity = verify(checkpoint, temporary, spec, verified, thresholds or DEFAULTS[options.precision])
        if parity.classes < 2 and options.measures(checkpoint.normalisation):
            raise OptionError("the network finds one class only on these frames, which shows nothing: give others")
    return parity


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


def _verified(checkpoint: Checkpoint, options: Options, frames: Iterable[NDArray[Any]]) -> Frames:
    """Return as many raw frames (C, H, W) as are worth the time: until their tiles hold `VERIFIED_PIXELS`.

    One at least; two where something is measured on them.
    """
    least = 2 if options.measures(checkpoint.normalisation) else 1
    chosen: list[NDArray[Any]] = []
    computed = 0
    for frame in frames:
        if len(frame) != checkpoint.shape.channels:
            raise FrameError(f"a frame of shape {frame.shape}: this network takes {checkpoint.shape.channels} channels")
        chosen.append(frame)
        plan = TilePlan((frame.shape[-2], frame.shape[-1]), options.tile, checkpoint.shape.geometry)
        computed += -(-len(plan) // options.batch) * options.batch * options.tile[0] * options.tile[1]
        if computed >= VERIFIED_PIXELS and len(chosen) >= least:
            break
    if len(chosen) < least:
        what = "an export on" if least == 1 else "on some of them what is measured on the others"
        raise OptionError(f"{len(chosen)} frames are too few to verify {what}: give {least} or more with --images")
    return chosen
