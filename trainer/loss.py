"""The energy: weighted pixel-wise soft-max cross entropy (Ronneberger et al. 2015, section 3, equation 1)."""

from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Return -sum(w log p) / sum(w): the paper's energy, divided by the weights so that it does not grow with the tile.

    Parameters
    ----------
    logits
        (N, classes, h, w), float.
    classes
        (N, h, w), int64.
    weights
        (N, h, w), float32. Pixels of weight 0 do not count.
    total
        (), float32: what to divide by instead of sum(w), where these tiles are a part of a batch only.
    """
    entropy = F.cross_entropy(logits.float(), classes, reduction="none")
    return (weights * entropy).sum() / (weights.sum() if total is None else total).clamp_min(1e-6)
