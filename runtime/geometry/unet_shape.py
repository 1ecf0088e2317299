"""Cost of a U-Net: multiply-accumulates and activation memory, from its shape alone.

>>> f"{UNetShape().macs(572, 572) / 1e9:.1f} GMAC"
'150.4 GMAC'
"""

from collections.abc import Iterator
from dataclasses import dataclass

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.plan import MAX_DEPTH, Geometry

# Labels are uint8.
MAX_CLASSES = 256
# Far beyond any U-Net, so that a header cannot ask for more.
MAX_CHANNELS = 1 << 16


@dataclass(frozen=True)
class Layer:
    """One convolution: channels in and out, height and width of the output, and taps per output pixel."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    taps: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one pass."""
        return self.height * self.width * self.channels_in * self.channels_out * self.taps

    @property
    def outputs(self) -> int:
        """Number of output values."""
        return self.height * self.width * self.channels_out


@dataclass(frozen=True)
class UNetShape:
    """Parameters of a U-Net: depth (poolings), base (feature channels of the first level), channels and classes.

    The defaults are those of the paper (Ronneberger et al. 2015, figure 1).

    Raises
    ------
    OptionError
        A parameter is below 1 (classes: 2), or beyond `MAX_DEPTH`, `MAX_CHANNELS` or `MAX_CLASSES`.
    """

    depth: int = 4
    base: int = 64
    channels: int = 1
    classes: int = 2

    def __post_init__(self) -> None:
        rules = (
            ("depth", self.depth, 1, MAX_DEPTH, ""),
            ("base", self.base, 1, MAX_CHANNELS, ""),
            ("channels", self.channels, 1, MAX_CHANNELS, ""),
            ("classes", self.classes, 2, MAX_CLASSES, " (background counts)"),
        )
        for name, value, least, most, counted in rules:
            if not least <= value <= most:
                raise OptionError(f"invalid network: {name} {value!r:.60}: use {least} to {most}{counted}")

    @property
    def geometry(self) -> Geometry:
        """Halo and grid, which follow from the depth."""
        return Geometry.unet(self.depth)

    def widths(self) -> list[int]:
        """Return the feature channels of each level, first to deepest."""
        return [self.base << level for level in range(self.depth + 1)]

    def layers(self, height: int, width: int) -> Iterator[Layer]:
        """Iterate over the convolutions of a pass of a (height, width) tile, in order."""
        widths, incoming = self.widths(), self.channels
        for level, features in enumerate(widths):
            if level:
                height, width = height // 2, width // 2
            yield from _block(incoming, features, height, width)
            height, width, incoming = height - 4, width - 4, features
        for features in reversed(widths[:-1]):
            height, width = 2 * height, 2 * width
            # 2x2 with stride 2: one of the four taps falls on each output pixel.
            yield Layer(2 * features, features, height, width, 1)
            yield from _block(2 * features, features, height, width)
            height, width = height - 4, width - 4
        yield Layer(self.base, self.classes, height, width, 1)

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates of one (height, width) tile."""
        return sum(layer.macs for layer in self.layers(height, width))

    def macs_per_pixel(self) -> float:
        """Return the multiply-accumulates per output pixel in the limit of large tiles."""
        side = (1 << 24) * self.geometry.grid - 4
        return self.macs(side, side) / side**2

    def activation_bytes(self, height: int, width: int, itemsize: int = 4) -> int:
        """Estimate the peak memory of one pass of a (height, width) tile in bytes, without weights.

        The peak is at the first convolution of the last expanding block: the skip, its cropped half, the up-convolved
        half, their concatenation, and the result. Engines hold most of them a second time in their own layout. For 2236
        x 2236 at depth 4, base 16, FP32, the estimate is 2.61 GiB; ONNX Runtime 1.31 on a CPU was measured to use 2.46.
        """
        layers = list(self.layers(height, width))
        skip, half, convolved = layers[1], layers[-4], layers[-3]
        return itemsize * (2 * skip.outputs + 7 * half.outputs + convolved.outputs)


def _block(incoming: int, features: int, height: int, width: int) -> Iterator[Layer]:
    yield Layer(incoming, features, height - 2, width - 2, 9)
    yield Layer(features, features, height - 4, width - 4, 9)
