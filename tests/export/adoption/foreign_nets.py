"""Networks as other toolkits build them, with the receptive field of each worked out by hand, layer by layer."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Interval = tuple[int, int]


def block(channels: int, features: int) -> nn.Sequential:
    """Return a padded convolution with batch normalisation and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU())


class PaddedUNet(nn.Module):
    """Two poolings, skips of the full size, one padded convolution a level."""

    def __init__(self, up: Callable[[int], nn.Module], classes: int = 2) -> None:
        super().__init__()
        self.first, self.second, self.deepest = block(1, 4), block(4, 6), block(6, 8)
        self.up_second, self.up_first = up(8), up(6)
        self.expand_second, self.expand_first = block(14, 6), block(10, 4)
        self.classify = nn.Conv2d(4, classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        deepest = self.deepest(self.pool(second))
        second = self.expand_second(torch.cat([self.up_second(deepest), second], 1))
        return self.classify(self.expand_first(torch.cat([self.up_first(second), first], 1)))


class FCN(nn.Module):
    """Two convolutions with stride 2, a skip that is added, two deconvolutions 4x4 as in Long et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.halved = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU())
        self.quartered = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.skip = nn.Conv2d(4, 2, 1)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        half = self.halved(x)
        return self.up[1](self.up[0](self.quartered(half)) + self.skip(half))


def dilated() -> nn.Sequential:
    """Four padded convolutions, each with twice the dilation of the one before."""
    layers = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=d, dilation=d), nn.ReLU()) for c, d in ((1, 1), (4, 2), (4, 4))]
    return nn.Sequential(*layers, nn.Conv2d(4, 2, 3, padding=8, dilation=8))


def unpadded() -> nn.Sequential:
    """Three convolutions that lose their borders."""
    return nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


# The interval of a layer's input that an interval of its output depends on, along one axis.
def conv(at: Interval, reach: int = 1) -> Interval:
    return at[0] - reach, at[1] + reach


def conv_stride_2(at: Interval) -> Interval:
    return 2 * at[0] - 1, 2 * at[1] + 1


def pool(at: Interval) -> Interval:
    return 2 * at[0], 2 * at[1] + 1


def up_convolution(at: Interval) -> Interval:
    return at[0] // 2, at[1] // 2


def bilinear(at: Interval) -> Interval:
    return (at[0] - 1) // 2, (at[1] + 1) // 2


def deconvolution_4x4(at: Interval) -> Interval:
    return -(-(at[0] - 2) // 2), (at[1] + 1) // 2


def chain(*layers: Callable[[Interval], Interval]) -> Callable[[Interval], Interval]:
    """Compose the layers of a network's deepest path, from output to input; all other paths reach less far."""

    def reads(at: Interval) -> Interval:
        for layer in layers:
            at = layer(at)
        return at

    return reads


@dataclass(frozen=True)
class Case:
    """A network, the interval that one output pixel depends on, and the period of its lattice."""

    make: Callable[[], nn.Module]
    reads: Callable[[Interval], Interval]
    grid: int
    margin: int = 0

    @property
    def radius(self) -> int:
        """The radius of its receptive field, over all phases of its lattice."""
        return max(max(y - self.reads((y, y))[0], self.reads((y, y))[1] - y) for y in range(self.grid))

    def network(self) -> nn.Module:
        """Random weights and statistics, the same each time."""
        torch.manual_seed(1)
        net = self.make().eval()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
        return net


CASES = {
    "bilinear": Case(
        lambda: PaddedUNet(lambda _: nn.Upsample(scale_factor=2, mode="bilinear")),
        chain(conv, bilinear, conv, bilinear, conv, pool, conv, pool, conv),
        grid=4,
    ),
    "nearest": Case(
        lambda: PaddedUNet(lambda _: nn.Upsample(scale_factor=2)),
        chain(conv, up_convolution, conv, up_convolution, conv, pool, conv, pool, conv),
        grid=4,
    ),
    "transposed": Case(
        lambda: PaddedUNet(lambda features: nn.ConvTranspose2d(features, features, 2, stride=2)),
        chain(conv, up_convolution, conv, up_convolution, conv, pool, conv, pool, conv),
        grid=4,
    ),
    "fcn": Case(FCN, chain(deconvolution_4x4, deconvolution_4x4, conv_stride_2, conv_stride_2), grid=4),
    "dilated": Case(dilated, chain(*(lambda at, d=d: conv(at, d) for d in (8, 4, 2, 1))), grid=1),
    "unpadded": Case(unpadded, chain(conv, conv, lambda at: conv(at, 2)), grid=1, margin=8),
}


def save(net: nn.Module, path: Path, open_axes: bool = True, channels: int = 1, training: bool = False) -> Path:
    """Export as other toolkits do, with axes that are open or fixed to 64 x 64."""
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in ("image", "mask")} if open_axes else None
    kind = next(net.parameters()).dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, channels, 64, 64, dtype=kind),), path, input_names=["image"], output_names=["mask"],
            dynamo=False, opset_version=17, dynamic_axes=axes, do_constant_folding=not training,
            training=torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL,
        )  # fmt: skip
    return path
