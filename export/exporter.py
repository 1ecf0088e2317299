"""Checkpoint in, verified ONNX file out.

>>> checkpoint = load("run")  # doctest: +SKIP
>>> export(checkpoint, "model.onnx", Options(planned_tile(checkpoint), precision="fp16"))  # doctest: +SKIP
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.export.gate import DEFAULTS, Parity, Thresholds, verification_of, verify
from unetrt.export.graph import build_graph
from unetrt.export.onnx_model import describe, require_clean, save
from unetrt.export.quantisation import quantised
from unetrt.runtime.errors import FrameError, OptionError, shown
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.geometry.planner import Budget, best_tile
from unetrt.runtime.model.spec import Head, InputType, ModelSpec, Precision
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.checkpoint import Checkpoint

# Frames are verified until their tiles hold this many pixels: enough to see a wrong export.
VERIFIED_PIXELS = 4_000_000

Frames = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Options:
    """The kind of file to write.

    Attributes
    ----------
    tile
        Height and width of the input, in pixels.
    precision
        Type of the layers between input and head.
    head
        The output: `logits`, `probabilities` or `labels`.
    batch
        Tiles in one pass.
    input
        The input: `float32` takes normalised grey values, `uint8` and `uint16` raw ones.
    normalisation
        `fixed` replaces a normalisation that is measured on each frame by the median offset and scale over every
        second verified frame; None keeps it.
    """

    tile: tuple[int, int]
    precision: Precision = "fp32"
    head: Head = "logits"
    batch: int = 1
    input: InputType = "float32"
    normalisation: Literal["fixed"] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"batch must be at least 1 (got {self.batch})")

    def measures(self, trained: Normalisation) -> bool:
        """Return whether the export holds constants measured on frames: INT8 ranges, or a frozen normalisation."""
        return self.precision == "int8" or (self.normalisation == "fixed" and trained.mode != "fixed")


def planned_tile(checkpoint: Checkpoint, frames: Sequence[tuple[int, int]] = (), batch: int = 1) -> tuple[int, int]:
    """Return the best tile for frames of these sizes (H, W), by default those of the training."""
    _require_checkpoint(checkpoint)
    sizes = Counter(frames) or Counter({(height, width): often for height, width, often in checkpoint.frame_sizes})
    if not sizes:
        raise OptionError("the checkpoint does not store the sizes of its training frames: give --tile or --frame")
    return best_tile(sizes, checkpoint.shape, Budget(batch=batch)).tile


def _require_checkpoint(given: object) -> None:
    if not isinstance(given, Checkpoint):
        raise OptionError(f"checkpoint must be a Checkpoint, such as load('run') (got {shown(given)})")


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
        The file. It is created only after it has passed the gate; on an error no file is left.
    options
        The kind of file.
    frames
        Raw frames (C, H, W) to verify on, used until their tiles hold `VERIFIED_PIXELS`; None takes the frames in the
        checkpoint. INT8 ranges and a frozen normalisation are measured on every second one.
    thresholds
        Limits on the difference; None takes those of the precision.

    Returns
    -------
    The difference between the export and the network in FP32.

    Raises
    ------
    TileError
        The tile is not legal.
    OptionError
        There are too few frames, the network finds a single class on them, a threshold exceeds its ceiling, or raw
        input is combined with a normalisation that is measured on each frame.
    FrameError
        A frame has another number of channels, or pixels that the export cannot take.
    ParityError
        The export differs by more than the thresholds.
    OutputError
        The file cannot be written.
    """
    _require_checkpoint(checkpoint)
    if not isinstance(options, Options):
        raise OptionError(f"options must be Options, such as Options(tile=(572, 572)) (got {shown(options)})")
    for side in options.tile:
        checkpoint.shape.geometry.require(side)
    limits = thresholds or DEFAULTS[options.precision]
    limits.require_for(options.precision)
    verified = _verified(checkpoint, options, checkpoint.frames if frames is None else frames)
    # Constants are measured on every second frame and verified on all frames.
    measured = verified[::2]
    spec = spec_for(checkpoint, options, measured)
    with whole_file(path) as temporary:
        model = _model(checkpoint, spec, measured)
        save(model, temporary)
        parity = verify(checkpoint, temporary, spec, verified, limits)
        describe(model, replace(spec, verification=verification_of(parity, limits, verified)))
        save(model, temporary)
    return parity


def spec_for(checkpoint: Checkpoint, options: Options, frames: Frames = ()) -> ModelSpec:
    """Return the spec of an export; a normalisation is frozen on raw frames (C, H, W) where the options say so.

    Raises
    ------
    TileError
        The tile is not legal.
    OptionError
        Raw input is combined with a normalisation that is measured on each frame.
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
        decoding=checkpoint.decoding,
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
    """Return the first raw frames (C, H, W) whose tiles hold `VERIFIED_PIXELS`; at least two to measure constants."""
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
        purpose = "verify an export" if least == 1 else "measure constants and verify them on other frames"
        raise OptionError(f"{len(chosen)} frames are too few to {purpose}: give {least} or more with --images")
    return chosen
