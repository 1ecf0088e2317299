"""The U-Net of Ronneberger, Fischer and Brox and its loss, in one file.

Sections, figures and equations are those of "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015 (arXiv:1505.04597). Shapes in comments are for the paper's tile, 572 x 572, at depth 4 and base 64.

>>> UNet()(torch.zeros(1, 1, 572, 572)).shape
torch.Size([1, 2, 388, 388])
"""

from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetrt.runtime.geometry.unet_shape import UNetShape

# The paper names no rate; the authors' published network uses 0.5 in the two deepest levels.
DROPOUT = 0.5


class UNet(nn.Module):
    """The network of figure 1: maps tiles to the logits of their cores.

    Parameters
    ----------
    shape
        Depth, base, channels and classes; default: the paper's, 23 convolutional layers and 31,030,658 weights.
    dropout
        Rate of the drop-out layers at the end of the contracting path (section 3.1).
    """

    def __init__(self, shape: UNetShape | None = None, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.shape = shape or UNetShape()
        widths = self.shape.widths()
        expanding = list(pairwise(reversed(widths)))
        self.contracting = nn.ModuleList(_block(i, o) for i, o in pairwise([self.shape.channels, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, kernel_size=2, stride=2) for i, o in expanding)
        self.expanding = nn.ModuleList(_block(i, o) for i, o in expanding)
        self.classify = nn.Conv2d(self.shape.base, self.shape.classes, kernel_size=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map tiles (N, C, h, w) to logits (N, classes, h - 2 halo, w - 2 halo), both float."""
        skips: list[Tensor] = []  # x: (1, 572, 572)
        for level, block in enumerate(self.contracting):
            if level:
                x = F.max_pool2d(x, kernel_size=2)  # (64, 284, 284), (128, 140, 140), (256, 68, 68), (512, 32, 32)
            x = block(x)  # (64, 568, 568), (128, 280, 280), (256, 136, 136), (512, 64, 64), (1024, 28, 28)
            if level >= self.shape.depth - 1:
                x = self.drop(x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.expanding, strict=True):
            # Figure 1 shows no ReLU here, but the initial weights are derived for "alternating convolution and ReLU
            # layers" (section 3), and the authors' published network has it.
            x = F.relu(up(x), inplace=True)  # (512, 56, 56), (256, 104, 104), (128, 200, 200), (64, 392, 392)
            x = torch.cat([_crop(skips.pop(), x, self.training), x], dim=1)  # twice the channels
            x = block(x)  # (512, 52, 52), (256, 100, 100), (128, 196, 196), (64, 388, 388)
        logits: Tensor = self.classify(x)  # (2, 388, 388)
        return logits

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "UNet":
        """Draw all weights from N(0, sqrt(2 / N)), N the incoming connections of one neuron (section 3)."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.bias is not None
                layer.weight.normal_(0, sqrt(2 / incoming(layer)), generator=generator)
                layer.bias.zero_()
        return self


def incoming(layer: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """Return the number of connections that enter one neuron of a convolution.

    For a 2x2 up-convolution with stride 2 it is the number of input channels: each output pixel sees one input pixel,
    through one of the four taps. torch's fan-in counts all four taps, and output channels instead of input channels.
    """
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer, nn.ConvTranspose2d):
        taps //= layer.stride[0] * layer.stride[1]
    return layer.in_channels * taps


def weighted_cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Return the weighted pixel-wise soft-max cross entropy of equation 1, -sum(w log p) / sum(w).

    The paper's energy is the sum alone; dividing by the weights makes it independent of the tile size.

    Parameters
    ----------
    logits
        (N, classes, h, w), float.
    classes
        (N, h, w), int64.
    weights
        (N, h, w), float32. Pixels of weight 0 are ignored.
    total
        Scalar tensor, float32: divisor instead of sum(w), for tiles that are only part of a batch.

    Returns
    -------
    Scalar tensor, float32; 0 where all weights are 0.
    """
    entropy = F.cross_entropy(logits.float(), classes, reduction="none")
    return (weights * entropy).sum() / (weights.sum() if total is None else total).clamp_min(1e-6)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return two unpadded 3x3 convolutions, each with a ReLU (section 2); height and width shrink by 4."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, kernel_size=3),
        nn.ReLU(inplace=True),
    )


def _crop(skip: Tensor, like: Tensor, training: bool) -> Tensor:
    """Crop the centre of `skip` to the height and width of `like` (section 2)."""
    # The same border on all four sides and for every tile: indices counted from both ends keep the tile out of an
    # exported graph.
    border = (skip.shape[-1] - like.shape[-1]) // 2
    if training:
        # The same pixels. Its gradient keeps the memory layout channels_last; that of a slice does not, and adding the
        # two layouts is a tenth of a step.
        return F.pad(skip, [-border] * 4)
    inner = slice(border, -border or None)  # padded convolutions lose nothing
    return skip[..., inner, inner]
