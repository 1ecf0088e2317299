"""From a network's scores to classes and probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import InferenceError

SPOILT = "the network gives NaN or infinity, as an activation leaves the range of its type: export it in fp32"


def best_class(scores: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the index of the highest score along the first axis of (classes, ...), the lowest one where they tie."""
    if len(scores) == 2:
        # Many times faster than argmax, which walks the far apart classes of each pixel.
        higher: NDArray[np.bool_] = np.greater(scores[1], scores[0])
        return higher.view(np.uint8)
    best, labels = scores[0], np.zeros(scores.shape[1:], np.uint8)
    for index, score in enumerate(scores[1:], start=1):
        higher = np.greater(score, best).view(np.uint8)
        # No label is as large as this index yet, so a maximum places it: a mask would cost a branch a pixel.
        np.maximum(labels, higher * np.uint8(index), out=labels)
        best = np.maximum(best, score)
    return labels


def require_finite_scores(scores: NDArray[Any]) -> None:
    """Raise InferenceError where scores of any shape hold NaN or infinity: compared, they would give the background."""
    # One sum instead of a mask: it is not finite if any term is not.
    if not np.isfinite(scores.sum()):
        raise InferenceError(SPOILT)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits (classes, ...) float32 into probabilities, in place, and return them."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits
