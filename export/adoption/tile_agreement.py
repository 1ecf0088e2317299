"""The gate of an adopted file: its tiles must answer as one pass over a larger image does."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.export.adoption.adapted_graph import adapted
from unetrt.export.adoption.sizes import Sizes
from unetrt.export.adoption.static_graph import Runner, Size
from unetrt.runtime.errors import OptionError, ParityError, TileError
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import Session

Array = NDArray[Any]
# Largest difference, as a share of the answer's range: float32 differs by the order of sums, coarser types by a step.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2, "int8": 2e-2}
# The range of an answer is taken for at least this share of its largest value.
FLAT = 0.02
# Scores that sum to 1 this closely at every pixel are probabilities.
SUMS_TO_ONE = 1e-2


def require_agreement(session: Session, sizes: Sizes) -> float:
    """Compare tiles on noise of several amplitudes, one grid and three quarters of a core apart along both axes.

    Parameters
    ----------
    session
        The adopted file, loaded by the runtime; with a head of scores where the network gives scores.
    sizes
        The network it was made from. Where it runs on larger images, one pass over an image that holds both tiles is
        the reference; else the first tile is, where both answer.

    Returns
    -------
    The largest difference, as a share of the answer's range; for labels, the share of pixels that differ.

    Raises
    ------
    ParityError
        Tiles answer differently.
    TileError
        The core is too small to compare tiles of a network that runs on no larger image.
    OptionError
        The answer is no probabilities, or is, other than the spec's head says.
    """
    spec = session.spec
    if not sizes.step and min(spec.core) <= spec.grid:
        raise TileError(
            f"a core of {spec.core[0]}x{spec.core[1]} px leaves nothing to compare tiles on that lie {spec.grid} px "
            f"apart, and {sizes.foreign.name} runs on no larger image: export it with open axes, or for a larger one"
        )
    worst = 0.0
    for shift in dict.fromkeys(((spec.grid, spec.grid), _shift(spec))):
        for image in _noise(spec, shift):
            tiles = [_answer(session, image, origin) for origin in ((0, 0), shift)]
            _require_head(tiles[0], spec)
            worst = max(worst, *_differences(tiles, _whole(sizes, spec, image), spec, shift))
    if not worst <= TOLERANCE[spec.precision]:
        raise ParityError(_refusal(worst, sizes, spec))
    return worst


def _refusal(worst: float, sizes: Sizes, spec: ModelSpec) -> str:
    other = "a pass over a larger image" if sizes.step else "each other"
    return (
        f"tiles differ by {worst:.2g} of the answer's range from {other} (at most {TOLERANCE[spec.precision]:g}): the "
        "answer depends on where in the tile a pixel lies, or on the rest of its batch. Either the grid is not "
        f"{spec.grid} but a multiple of it (give --grid, and multiples of that for --tile), or the answer "
        "is coarser than the image, or the network has constants as large as the tile and cannot be tiled"
    )


def _noise(spec: ModelSpec, shift: Size) -> Iterator[Array]:
    """Yield images (C, H, W) float32 that hold two tiles so far apart: as normalised frames are, and far louder."""
    random = np.random.default_rng(2015)
    shape = (spec.channels, spec.tile[0] + shift[0], spec.tile[1] + shift[1])
    yield random.random(shape, np.float32)
    for amplitude in (1, 20):
        yield amplitude * random.standard_normal(shape, np.float32)
    if spec.normalisation.mode == "fixed":
        # The largest float16 is 65504.
        for brightest in (255, 4095) if spec.precision == "fp16" else (255, 65535):
            frame = random.integers(0, brightest, shape, endpoint=True).astype(np.float32)
            yield spec.normalisation.measure(frame).apply(frame)


def _shift(spec: ModelSpec) -> Size:
    """Return how far apart the tiles lie, in pixels: what drifts a little from pixel to pixel adds up over a core."""
    down, right = (max(spec.grid, 3 * side // 4 // spec.grid * spec.grid) for side in spec.core)
    return down, right


def _answer(session: Session, image: Array, origin: Size) -> Array:
    """Return the answer of the runtime for the tile at `origin`, (..., h', w')."""
    (top, left), (height, width) = origin, session.spec.tile
    (lane,) = session.lanes(1)
    # What lies in the other places of the batch must not matter: it is another part of the image each time.
    lane.input[:] = image[:, ::-1, ::-1][:, top : top + height, left : left + width]
    lane.input[-1] = image[:, top : top + height, left : left + width]
    lane.launch()
    lane.wait()
    answer: Array = lane.output[-1].copy()
    return answer


def _whole(sizes: Sizes, spec: ModelSpec, image: Array) -> Array | None:
    """Return the answer of one pass over the image, or None where the network runs on the tile alone."""
    if not sizes.step:
        return None
    large = replace(spec, tile=(image.shape[-2], image.shape[-1]), batch=1)
    try:
        network = sizes.at(large.tile)
    except TileError as error:
        raise TileError(
            f"{sizes.foreign.name} does not run on {image.shape[-2]}x{image.shape[-1]} px, {spec.grid} px more than a "
            "tile or a multiple of it: its grid is larger; give --grid"
        ) from error
    answer: Array = Runner(adapted(network, large))(image[None])[0][0]
    return answer


def _differences(tiles: list[Array], whole: Array | None, spec: ModelSpec, shift: Size) -> Iterator[float]:
    """Yield how far both tiles are from the whole, or from each other where both answer."""
    (height, width), (down, right) = spec.core, shift
    if whole is None:
        yield _difference(tiles[0][..., down:, right:], tiles[1][..., : height - down, : width - right])
        return
    for (top, left), tile in zip(((0, 0), (down, right)), tiles, strict=True):
        yield _difference(whole[..., top : top + height, left : left + width], tile)


def _difference(expected: Array, given: Array) -> float:
    """Return the largest difference as a share of the answer's range; the share of pixels that differ, for labels."""
    if expected.dtype == np.uint8:
        return float((expected != given).mean())
    if not (np.isfinite(expected).all() and np.isfinite(given).all()):
        raise ParityError("the network gives NaN or infinity for noise: it cannot be verified")
    # Of answers that hardly vary around a large value, that value: float32 cannot tell them apart any closer.
    size = max(float(np.ptp(expected)), FLAT * float(np.abs(expected).max()))
    return float(np.abs(expected - given).max()) / size if size else 0.0


def _require_head(answer: Array, spec: ModelSpec) -> None:
    """Raise OptionError where scores (classes, h', w') or labels are not what the head says."""
    if spec.head == "labels":
        if answer.max() >= len(spec.classes):
            raise OptionError(f"the output has label {answer.max()}, {len(spec.classes)} classes are named: name all")
        return
    off = np.abs(answer.sum(axis=0) - 1).max()
    probable = off < SUMS_TO_ONE and answer.min() >= 0
    if spec.head == "probabilities" and not probable:
        raise OptionError(
            "the output is no probabilities: its classes do not sum to 1 at each pixel; use --head logits"
        )
    if spec.head == "logits" and len(answer) > 1 and probable:
        raise OptionError("the output is probabilities, which sum to 1 at each pixel: use --head probabilities")
