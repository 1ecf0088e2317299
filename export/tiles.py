"""Frames as the tiles that a network is fed, for what looks into a network instead of using it."""

from collections.abc import Iterable, Iterator
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.model.spec import ModelSpec


def tile_batches(spec: ModelSpec, frames: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Iterate over what the network is fed of raw frames.

    Parameters
    ----------
    spec
        How it is fed.
    frames
        Raw frames (C, H, W) of integers or floats.

    Returns
    -------
    Arrays as `spec.new_input`, (batch, C, h, w) of the input dtype; in the last of a frame the last tile is repeated.
    """
    for frame in frames:
        affine = spec.normalisation.measure(frame)
        plan = TilePlan((frame.shape[-2], frame.shape[-1]), spec.tile, spec.geometry, spec.border)
        for tiles in plan.batches(spec.batch):
            batch = spec.new_input()
            for slot, tile in enumerate(tiles):
                tile.cut(frame, batch[slot])
            batch[len(tiles) :] = batch[len(tiles) - 1]
            yield batch if spec.takes_raw else affine.apply(batch)
