"""The U-Net of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015 (arXiv:1505.04597), in one file. Sections and figures named below are that paper's.

Shapes in comments are for the paper's tile, 572 x 572, at depth 4 and base 64.
"""  # noqa: D205

from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetrt.runtime.geometry.unet_shape import UNetShape

# Figure 1's caption names no rate; the authors' published network uses 0.5 in the two deepest levels.
DROPOUT = 0.5


class UNet(nn.Module):
    """The network of figure 1: tiles in, the logits of their cores out.

    Parameters
    ----------
    shape
        Depth, base, channels and classes; the defaults are the paper's: 23 convolutional layers, 31,030,658 weights.
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
            # The weights are drawn for "alternating convolution and ReLU layers" (section 3), and the network that the
            # authors published has this ReLU too, though figure 1 does not show it.
            x = F.relu(up(x), inplace=True)  # (512, 56, 56), (256, 104, 104), (128, 200, 200), (64, 392, 392)
            x = torch.cat([_crop(skips.pop(), x), x], dim=1)  # twice the channels
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
    """Return how many connections enter one neuron of a convolution.

    A 2x2 up-convolution with stride 2 has one: each output pixel sees one input pixel through one of the four taps.
    torch's fan-in counts the four taps, and the output channels for the input ones.
    """
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer, nn.ConvTranspose2d):
        taps //= layer.stride[0] * layer.stride[1]
    return layer.in_channels * taps


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return two unpadded 3x3 convolutions, each with a ReLU (section 2): 4 pixels less a side."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, kernel_size=3),
        nn.ReLU(inplace=True),
    )


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    """Cut the middle out of `skip`, as large as `like`: border pixels are lost in every convolution (section 2)."""
    # The same on all four sides and for every tile. Counted from both ends, an exported graph does not know the tile.
    border = (skip.shape[-1] - like.shape[-1]) // 2
    inner = slice(border, -border or None)  # padded convolutions lose nothing
    return skip[..., inner, inner]
