"""unetrt.export.adoption: converts an ONNX file of another toolkit to a model file whose tiles are exact.

`adopt` reads the file and finds the sizes it runs on (`_foreign`), first in a separate process where opening the file
might end this one (`_trial`), measures its receptive field and lattice
(`_receptive_field`, on the graph's `_footprint`), puts unetrt's input, core and head around it, and compares tiles with
one pass over a larger image (`_agreement`). A network whose tiles differ is refused.

>>> choices = Choices(("background", "cell"), Normalisation("zscore"), "logits", tile=(512, 512))
>>> adopt("net.onnx", "model.onnx", choices).field.radius  # doctest: +SKIP
92
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from unetrt._version import __version__
from unetrt.export.adoption._agreement import adapted, gives_scores, require_agreement
from unetrt.export.adoption._foreign import Foreign, read_foreign, sizes_of
from unetrt.export.adoption._receptive_field import ReceptiveField, measure
from unetrt.export.adoption._trial import Limits, require_survivable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, whole_file
from unetrt.runtime.geometry.plan import Border
from unetrt.runtime.model.safety import external_files
from unetrt.runtime.model.spec import Annotation, Decoding, Head, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions import open_session

__all__ = ["Adoption", "Choices", "Limits", "ReceptiveField", "adopt"]

DEFAULT_LIMITS = Limits()


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


@dataclass(frozen=True)
class Adoption:
    """The result of `adopt`.

    Attributes
    ----------
    spec
        The spec of the file that was written.
    field
        The measured receptive field.
    difference
        The largest difference between a tile and the reference, as a share of the output's range.
    reference
        What tiles were compared with: one pass over a larger image, or each other if only one size runs.
    remarks
        Possible improvements, one sentence each.
    given_grid
        Whether the grid was given and only verified.
    """

    spec: ModelSpec
    field: ReceptiveField
    difference: float
    reference: str
    remarks: tuple[str, ...]
    given_grid: bool = False


def adopt(source: str | Path, path: str | Path, choices: Choices, limits: Limits = DEFAULT_LIMITS) -> Adoption:
    """Convert an ONNX file of another toolkit to a model file that the segmenter tiles exactly.

    Parameters
    ----------
    source
        The foreign file: one input (N, C, H, W) and one output of the same height and width, or smaller by a fixed
        margin.
    path
        The model file. It is created only after its tiles have been compared; on an error no file is left.
    choices
        Information that the file does not contain.
    limits
        Limits of the first opening of the file, where that is in a separate process.

    Raises
    ------
    ModelFileError
        The file cannot be read, its network cannot be tiled, or it ends the process that opens it.
    OutOfMemoryError
        Opening it takes more memory than the limit.
    OptionError
        The halo or the grid is too small, or head and classes do not fit the network's output.
    TileError
        The network does not run on the tile, or the tile is too small for the halo.
    ParityError
        Tiles differ from a pass over a larger image.
    OutputError
        The file cannot be written.
    """
    require_survivable(Path(source), choices.tile, choices.grid, limits)
    foreign = read_foreign(source)
    require_place(path, (source, *external_files(source)))
    tile = choices.tile or foreign.size
    if tile is None:
        raise OptionError(f"{foreign.name} takes images of any size: choose one with --tile, 512 or HEIGHTxWIDTH")
    sizes = sizes_of(foreign, tile, choices.grid)
    field = measure(sizes, choices.grid)
    spec = _spec(foreign, tile, field, choices)
    network = foreign.at(tile, spec.batch)
    with whole_file(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        onnx.save(adapted(network, spec), temporary)
        compared = temporary
        if spec.head == "labels" and gives_scores(network):
            # The labels of noise are nearly all background and would hide differences that the scores show.
            compared = Path(folder) / "scores.onnx"
            onnx.save(adapted(network, replace(spec, head="logits")), compared)
        with open_session(compared, "onnxruntime") as session:
            difference = require_agreement(session, sizes)
    reference = "one pass over a larger image" if sizes.step else "each other"
    return Adoption(spec, field, difference, reference, tuple(_remarks(spec, field)), choices.grid is not None)


def _spec(foreign: Foreign, tile: tuple[int, int], field: ReceptiveField, choices: Choices) -> ModelSpec:
    halo = field.halo if choices.halo is None else choices.halo
    if halo < field.least_halo:
        raise OptionError(
            f"halo {halo} is too small: an output pixel depends on input pixels up to {field.least_halo} px away; "
            f"use --halo {field.halo}"
        )
    return ModelSpec(
        tile=tile,
        halo=halo,
        grid=field.grid,
        channels=foreign.channels,
        classes=choices.classes,
        normalisation=_normalisation(choices.normalisation, foreign.channels),
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


def _normalisation(chosen: Normalisation, channels: int) -> Normalisation:
    """Return the normalisation; a single offset and scale are repeated for every channel."""
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
