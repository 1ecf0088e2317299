"""A foreign ONNX file in, a verified model file of ours out."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from unetrt._version import __version__
from unetrt.export.adoption.adapted_graph import adapted, gives_scores
from unetrt.export.adoption.foreign import Foreign, read_foreign
from unetrt.export.adoption.receptive_field import ReceptiveField, measure
from unetrt.export.adoption.sizes import Sizes, sizes_of
from unetrt.export.adoption.static_graph import clean, fixed
from unetrt.export.adoption.tile_agreement import require_agreement
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, whole_file
from unetrt.runtime.geometry.plan import Border
from unetrt.runtime.model.safety import external_files
from unetrt.runtime.model.spec import Annotation, Head, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions import open_session


@dataclass(frozen=True)
class Choices:
    """What a foreign file does not say of itself.

    Attributes
    ----------
    classes
        Names of the classes, background first.
    normalisation
        How grey values become the network's input.
    head
        What the network's output is.
    tile
        Height and width of the input, in pixels; None for what the file fixes.
    halo, grid
        In pixels; verified where given, measured where None.
    batch
        Tiles in one pass.
    border
        What lies beyond the frame.
    annotation, separation_border
        What the network was trained on, as in the spec.
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
    """What came of it.

    Attributes
    ----------
    spec
        The spec of the file that was written.
    field
        What was measured of the network.
    difference
        The largest difference between a tile and the reference, as a share of the answer's range.
    reference
        What tiles were compared with: one pass over a larger image where the network runs on one, else each other.
    remarks
        What could be better, one sentence each.
    given_grid
        Whether the grid was given, and only verified.
    """

    spec: ModelSpec
    field: ReceptiveField
    difference: float
    reference: str
    remarks: tuple[str, ...]
    given_grid: bool = False


def adopt(source: str | Path, path: str | Path, choices: Choices) -> Adoption:
    """Turn an ONNX file that is not ours into a model file that the segmenter tiles exactly.

    Parameters
    ----------
    source
        The foreign file: one input (N, C, H, W), one output, as large or smaller by a fixed margin.
    path
        Where the model file goes. It appears when it has passed; on any error nothing is left behind.
    choices
        What the file does not say of itself.

    Raises
    ------
    ModelFileError
        The file cannot be read, or its network cannot be tiled.
    OptionError
        The halo or the grid is too small, or head and classes are not the network's.
    TileError
        The network does not run on the tile, or the tile is too small for the halo.
    ParityError
        Tiles answer differently from a pass over a larger image.
    OutputError
        The file cannot be written.
    """
    foreign = read_foreign(source)
    require_place(path, (source, *external_files(source)))
    sizes = sizes_of(foreign, _tile(foreign, choices), choices.grid)
    field = measure(sizes, choices.grid)
    spec = _spec(foreign, sizes, field, choices)
    network = fixed(foreign, spec.tile, spec.batch)
    with whole_file(path) as temporary, TemporaryDirectory(dir=temporary.parent) as copies:
        _write(network, spec, temporary)
        shown = temporary
        if spec.head == "labels" and gives_scores(network):
            # Labels of noise are nearly all background, which would hide what its scores show.
            shown = Path(copies) / "scores.onnx"
            _write(network, replace(spec, head="logits"), shown)
        with open_session(shown, "onnxruntime") as session:
            difference = require_agreement(session, sizes)
    reference = "one pass over a larger image" if sizes.step else "each other"
    return Adoption(spec, field, difference, reference, tuple(_remarks(spec, field)), choices.grid is not None)


def _write(network: onnx.ModelProto, spec: ModelSpec, path: Path) -> None:
    model = adapted(network, spec)
    clean(model)
    onnx.save(model, path)


def _tile(foreign: Foreign, choices: Choices) -> tuple[int, int]:
    tile = choices.tile or foreign.size
    if tile is None:
        raise OptionError(f"{foreign.name} takes images of any size: choose one with --tile, 512 or HEIGHTxWIDTH")
    return tile


def _spec(foreign: Foreign, sizes: Sizes, field: ReceptiveField, choices: Choices) -> ModelSpec:
    return ModelSpec(
        tile=sizes.tile,
        halo=_halo(field, choices.halo),
        grid=field.grid,
        channels=foreign.channels,
        classes=choices.classes,
        normalisation=_normalisation(choices.normalisation, foreign.channels),
        batch=choices.batch,
        head=choices.head,
        precision=foreign.precision,
        border=choices.border,
        annotation=choices.annotation,
        separation_border=choices.separation_border,
        training={"adopted_from": foreign.name},
        weights_sha256=foreign.sha256(),
        written_by=f"unetrt {__version__}",
    )


def _halo(field: ReceptiveField, given: int | None) -> int:
    if given is None:
        return field.halo
    least = max(field.radius, *(pixels // 2 for pixels in field.margin))
    if given < least:
        raise OptionError(
            f"halo {given} is too small: the output at a place depends on pixels up to {least} px away: "
            f"use --halo {field.halo}"
        )
    return given


def _normalisation(chosen: Normalisation, channels: int) -> Normalisation:
    """Repeat constants that were given once for every channel."""
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
            f"with halo {spec.halo} the tiles lie {off} px off the lattice of a pass over the bare frame: seamless, "
            f"but equal to that pass only with --halo {field.halo}"
        )
    return remarks
