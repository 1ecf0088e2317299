"""Tiles of a network that sees the whole image: not exact, so their difference is measured on the user's frames.

Instance normalisation, squeeze-and-excitation or resizing with aligned corners make every output pixel depend on the
whole frame. Such a network can only be tiled approximately, with a chosen overlap in place of a halo (`overlap_of`).
`disagreement` segments frames in tiles and in one pass, and returns what the spec then says of the file.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.export.adoption._agreement import adapted
from unetrt.export.adoption._foreign import Size, Sizes
from unetrt.export.adoption._output import Kind
from unetrt.export.onnx_model import save
from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.model.spec import Approximation, ModelSpec
from unetrt.runtime.pixels.frames import as_image
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session

BACKEND = "onnxruntime"


def overlap_of(sizes: Sizes, overlap: int, grid: int) -> int:
    """Return an overlap in pixels, used as a halo, if tiles with it lie on the lattice of a pass over the frame.

    Raises
    ------
    OptionError
        They do not; the message names the nearest overlaps.
    TileError
        The network runs on one size only, so that it cannot be compared with a pass over the frame.
    """
    if not sizes.step:
        raise TileError(
            f"{sizes.foreign.name} runs on one size only, so its tiles cannot be compared with one pass over a frame: "
            "export it with open axes"
        )
    least = _least(sizes)
    above = max(least, overlap + (least - overlap) % grid)
    if overlap != above:
        near = f"{above - grid} or {above}" if above > least else f"{above}"
        rule = f"the network crops {least} px and pools on a lattice of {grid} px"
        raise OptionError(
            f"overlap {overlap} puts tiles off the lattice of one pass ({rule}): use --approximate {near}"
        )
    return overlap


def _least(sizes: Sizes) -> int:
    """Return by how many pixels the output is smaller than the input on each side."""
    return max(sizes.margin) // 2


def disagreement(
    sizes: Sizes, model: Path, spec: ModelSpec, kind: Kind, frames: Iterable[NDArray[Any]], cause: str
) -> Approximation:
    """Segment frames in tiles and in one pass each, and return how many pixels differ.

    Parameters
    ----------
    sizes
        The network.
    model
        The adopted file; files for one pass are written beside it.
    spec
        Its spec.
    kind
        The kind of the network's output.
    frames
        Raw frames (C, H, W) of any dtype that a segmenter takes.
    cause
        Why tiles are not exact.

    Raises
    ------
    OptionError
        There is no frame, or all fit into one tile.
    TileError
        The network does not run on a frame.
    """
    differing = pixels = count = seams = 0
    with ExitStack() as opened:
        tiled = opened.enter_context(_segmenter(opened, model))
        whole: dict[Size, Segmenter] = {}
        for frame in frames:
            height, width = size = frame.shape[-2], frame.shape[-1]
            if size not in whole:
                path = model.with_name(f"whole-{height}x{width}.onnx")
                _save_whole(sizes, spec, kind, size, path)
                whole[size] = opened.enter_context(_segmenter(opened, path))
            image = as_image(frame)
            differing += int(np.count_nonzero(tiled.segment(image).labels != whole[size].segment(image).labels))
            pixels, count, seams = pixels + height * width, count + 1, seams + len(spec.plan(size)) - 1
    if not seams:
        core = "x".join(map(str, spec.core))
        raise OptionError(
            f"the images show no seam, as each fits into one tile's core of {core} px: give larger --images, or use a "
            "smaller --tile"
        )
    return Approximation(cause, differing / pixels, count)


def _segmenter(opened: ExitStack, path: Path) -> Segmenter:
    return Segmenter(opened.enter_context(open_session(path, BACKEND)))


def _save_whole(sizes: Sizes, spec: ModelSpec, kind: Kind, size: Size, path: Path) -> None:
    """Write a model whose one tile covers a frame of this size: mirrored only where the network needs more pixels."""
    geometry = Geometry(_least(sizes), spec.grid, spec.tile[0] % spec.grid)
    height, width = (geometry.side_for(side) for side in size)
    large = replace(spec, tile=(height, width), halo=geometry.halo, batch=1)
    save(adapted(sizes.at(large.tile), large, kind), path)
