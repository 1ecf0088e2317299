"""Whether all that a file gives fits together: classes with scores, and the places of a batch with each other."""

from collections.abc import Sequence

import numpy as np

from unetrt.export.parity import Array, as_image
from unetrt.runtime.errors import ParityError
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session


def require_same_labels(scores: Session, labels: Session, frames: Sequence[Array], most: float) -> None:
    """Raise ParityError where a file gives other classes than the scores that were compared, on raw frames (C, H, W).

    Parameters
    ----------
    scores, labels
        What was compared, and the file in question.
    frames
        Raw frames.
    most
        Share of the pixels that may differ.
    """
    with Segmenter(scores) as expected, Segmenter(labels) as given:
        images = [as_image(frame) for frame in frames]
        differ = [expected.segment(image).labels != given.segment(image).labels for image in images]
    share = np.concatenate([pixels.ravel() for pixels in differ]).mean()
    if share > most:
        raise ParityError(f"the file gives another class than its own scores at {share:.2%} of the pixels")


def require_same_slots(session: Session, tile: Array, tolerance: float) -> None:
    """Raise ParityError where a tile's answer depends on its place in the batch.

    Parameters
    ----------
    session
        The file.
    tile
        What the network is fed, (C, h, w) of its input dtype: put into every place.
    tolerance
        What a value may differ by, as a share of the largest.
    """
    (lane,) = session.lanes(1)
    lane.input[...] = tile
    lane.launch()
    lane.wait()
    first, *others = lane.output.astype(np.float32)
    largest = np.abs(first).max()
    for place, other in enumerate(others, start=1):
        if not np.abs(other - first).max() <= tolerance * largest:
            raise ParityError(f"the file answers differently in place {place} of its batch than in place 0")
