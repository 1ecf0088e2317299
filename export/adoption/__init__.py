"""unetrt.export.adoption: converts an ONNX file of another toolkit to a model file whose tiles are exact.

`adopt` reads the file and finds the sizes it runs on (`_foreign`), first in a separate process where opening the file
might end this one (`_trial`). It measures the network's receptive field and lattice (`_receptive_field`, on the graph's
`_footprint`), judges its output by its values (`_output`), puts unetrt's input, core and head around it, and compares
tiles with one pass over a larger image (`_agreement`). A network whose tiles differ is refused, unless it sees the
whole image and the user accepts that (`_approximate`).

>>> choices = Choices(("background", "cell"), Normalisation("zscore"), "logits", tile=(512, 512))
>>> adopt("net.onnx", "model.onnx", choices).field.radius  # doctest: +SKIP
92
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from unetrt._version import __version__
from unetrt.export.adoption._agreement import TOLERANCE, adapted, require_agreement
from unetrt.export.adoption._approximate import disagreement, overlap_of
from unetrt.export.adoption._footprint import WholeImageError
from unetrt.export.adoption._foreign import Foreign, Sizes, read_foreign, sizes_of
from unetrt.export.adoption._output import require_fit, require_repeatable
from unetrt.export.adoption._receptive_field import ReceptiveField, measure, period_of
from unetrt.export.adoption._trial import TrialLimits, require_survivable
from unetrt.export.onnx_model import describe, save, today
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, whole_file
from unetrt.runtime.geometry.plan import Border
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.model.spec import Annotation, Decoding, Head, ModelSpec, Verification
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions import open_session

__all__ = ["Adoption", "Choices", "ReceptiveField", "TrialLimits", "adopt"]

DEFAULT_LIMITS = TrialLimits()


# Number of channels C -> raw frames (C, H, W).
Frames = Callable[[int], Iterable[NDArray[Any]]]


@dataclass(frozen=True)
class Choices:
    """Information that a foreign file does not contain.

    Attributes
    ----------
    classes
        Names of the classes, background first.
    normalisation
        How grey values become the network's input.
    head
        The model's output; for `labels`, an argmax is added to a network whose output is scores.
    tile
        Height and width of the input, in pixels; None for the size that the file fixes.
    halo, grid
        In pixels; verified if given, measured if None.
    batch
        Tiles in one pass.
    border
        How the frame continues beyond its edges.
    annotation
        The annotation that the network was trained on, as in `ModelSpec`.
    separation_border
        Width in pixels of the background that training cut between touching objects.
    output
        Name of the output, for a network that has several.
    approximate
        Only for a network that sees the whole image, which no halo makes exact: pixels of context on each side of a
        tile's core, in place of the halo. Neighbouring tiles share twice as many.
    """

    classes: tuple[str, ...]
    normalisation: Normalisation
    head: Head
    tile: tuple[int, int] | None = None
    halo: int | None = None
    grid: int | None = None
    batch: int = 1
    border: Border = "reflect"
    annotation: Annotation = "instances"
    separation_border: int = 0
    output: str | None = None
    approximate: int | None = None


@dataclass(frozen=True)
class Adoption:
    """The result of `adopt`.

    Attributes
    ----------
    spec
        The spec of the file that was written.
    field
        The measured receptive field; None if the network sees the whole image.
    difference
        The largest difference between a tile and the reference, as a share of the output's range; for an approximate
        model, the share of pixels whose class differs.
    reference
        What tiles were compared with: one pass over a larger image or over each frame, or each other if only one size
        runs.
    remarks
        Possible improvements, one sentence each.
    given_grid
        Whether the grid was given and only verified.
    """

    spec: ModelSpec
    field: ReceptiveField | None
    difference: float
    reference: str
    remarks: tuple[str, ...]
    given_grid: bool = False


def adopt(
    source: str | Path,
    path: str | Path,
    choices: Choices,
    frames: Frames | None = None,
    limits: TrialLimits = DEFAULT_LIMITS,
) -> Adoption:
    """Convert an ONNX file of another toolkit to a model file that the segmenter tiles exactly, or says if it does not.

    Parameters
    ----------
    source
        The foreign file: one input (N, C, H, W) or (N, H, W, C) and an output of the same height and width, or smaller
        by a fixed margin.
    path
        The model file. It is created only after its tiles have been compared; on an error no file is left.
    choices
        Information that the file does not contain.
    frames
        With `approximate`: returns raw frames (C, H, W) for the number of channels C, on which tiles are compared with
        one pass.
    limits
        TrialLimits of the first opening of the file, where that is in a separate process.

    Raises
    ------
    ModelFileError
        The file cannot be read, its network cannot be tiled or draws at random, or it ends the process that opens it.
    OutOfMemoryError
        Opening it takes more memory than the limit.
    OptionError
        The halo or the grid is too small, or head and classes do not fit the network's output.
    TileError
        The network does not run on the tile, or the tile is too small for the halo.
    ParityError
        Tiles differ from a pass over a larger image, or the output is the same at every pixel.
    OutputError
        The file cannot be written.
    """
    _require_choices(choices, frames)
    require_survivable(Path(source), choices.output, choices.tile, choices.grid, limits)
    foreign = read_foreign(source, choices.output)
    require_place(path, (source, *external_files(source)))
    tile = choices.tile or foreign.size
    if tile is None:
        raise OptionError(f"{foreign.name} takes images of any size: choose one with --tile, 512 or HEIGHTxWIDTH")
    sizes = sizes_of(foreign, tile, choices.grid)
    require_repeatable(foreign, foreign.at(tile), tile)
    try:
        field = measure(sizes, choices.grid)
    except WholeImageError as error:
        if choices.approximate is None or frames is None:
            raise
        return _approximate(sizes, path, choices, frames(foreign.channels), error.cause)
    if choices.approximate is not None:
        raise OptionError(f"{foreign.name} is tiled exactly with halo {field.halo}: leave out --approximate")
    return _exact(sizes, path, choices, field)


def _require_choices(choices: Choices, frames: Frames | None) -> None:
    """Raise OptionError for choices that contradict each other."""
    if choices.approximate is None:
        if frames is not None:
            raise OptionError("--images are for --approximate OVERLAP: an exact network is compared on noise")
        return
    if frames is None:
        raise OptionError("--approximate is measured on raw frames: give some with --images")
    if choices.halo is not None:
        raise OptionError(f"--approximate {choices.approximate} takes the place of --halo {choices.halo}: leave it out")


def _exact(sizes: Sizes, path: str | Path, choices: Choices, field: ReceptiveField) -> Adoption:
    """Write a model file if its tiles agree with one pass over a larger image."""
    halo = field.halo if choices.halo is None else choices.halo
    if halo < field.least_halo:
        raise OptionError(
            f"halo {halo} is too small: an output pixel depends on input pixels up to {field.least_halo} px away; "
            f"use --halo {field.halo}"
        )
    foreign, spec = sizes.foreign, _spec(sizes, halo, field.grid, choices)
    kind = require_fit(foreign.at(sizes.tile), spec)
    network = foreign.at(sizes.tile, spec.batch)
    reference = "one pass over a larger image" if sizes.step else "each other"
    with whole_file(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        model = adapted(network, spec, kind)
        save(model, temporary)
        compared = temporary
        if spec.head == "labels" and kind != "labels":
            # The labels of noise are nearly all background and would hide differences that the scores show.
            compared = Path(folder) / "scores.onnx"
            save(adapted(network, replace(spec, head="logits"), kind), compared)
        with open_session(compared, "onnxruntime") as session:
            difference = require_agreement(session, sizes, kind)
        limits = {"difference": TOLERANCE[spec.precision]}
        verification = Verification(reference, {"difference": difference}, limits, 0, 0, "", today())
        spec = replace(spec, verification=verification)
        describe(model, spec)
        save(model, temporary)
    return Adoption(spec, field, difference, reference, tuple(_remarks(spec, field)), choices.grid is not None)


def _approximate(
    sizes: Sizes, path: str | Path, choices: Choices, frames: Iterable[NDArray[Any]], cause: str
) -> Adoption:
    """Write a model file whose spec says how much its tiles differ from one pass over the frames."""
    assert choices.approximate is not None
    grid = period_of(sizes, choices.grid)
    spec = _spec(sizes, overlap_of(sizes, choices.approximate, grid), grid, choices)
    kind = require_fit(sizes.foreign.at(sizes.tile), spec)
    model = adapted(sizes.foreign.at(sizes.tile, spec.batch), spec, kind)
    with whole_file(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        tiled = Path(folder) / "tiled.onnx"
        save(model, tiled)
        approximate = disagreement(sizes, tiled, spec, kind, frames, cause)
        spec = replace(spec, approximate=approximate)
        describe(model, spec)
        save(model, temporary)
    return Adoption(spec, None, approximate.disagreement, "one pass over each frame", (), choices.grid is not None)


def _spec(sizes: Sizes, halo: int, grid: int, choices: Choices) -> ModelSpec:
    foreign = sizes.foreign
    return ModelSpec(
        tile=sizes.tile,
        halo=halo,
        grid=grid,
        channels=foreign.channels,
        classes=choices.classes,
        normalisation=_normalisation(choices.normalisation, foreign),
        batch=choices.batch,
        head=choices.head,
        precision=foreign.precision,
        border=choices.border,
        annotation=choices.annotation,
        decoding=Decoding("components", choices.separation_border),
        training={"adopted_from": foreign.name},
        weights_sha256=foreign.sha256(),
        written_by=f"unetrt {__version__}",
    )


def _normalisation(chosen: Normalisation, foreign: Foreign) -> Normalisation:
    """Return the normalisation; a single offset and scale are repeated for every channel."""
    channels, brightest = foreign.channels, foreign.brightest
    if brightest and chosen.mode != "fixed":
        raise OptionError(
            f"{foreign.name} takes grey values as whole numbers from 0 to {brightest}, but normalisation {chosen.mode} "
            f"maps them to about 0 to 1: use fixed:0:1, or for frames up to another LARGEST fixed:0:{brightest}/LARGEST"
        )
    if chosen.mode != "fixed" or len(chosen.offset) == channels:
        return chosen
    if len(chosen.offset) != 1:
        raise OptionError(
            f"normalisation fixed has {len(chosen.offset)} offsets, the network {channels} channels: give one each"
        )
    return Normalisation("fixed", offset=chosen.offset * channels, scale=chosen.scale * channels)


def _remarks(spec: ModelSpec, field: ReceptiveField) -> list[str]:
    remarks = []
    if spec.halo >= field.halo + spec.grid:
        remarks.append(f"halo {spec.halo} is larger than needed: --halo {field.halo} is exact too, and faster")
    if off := (spec.halo - field.margin[0] // 2) % spec.grid:
        remarks.append(
            f"with halo {spec.halo} the tiles are shifted by {off} px from the lattice of a pass over the unpadded "
            f"frame: the result is seamless, but equals that pass only with --halo {field.halo}"
        )
    return remarks
