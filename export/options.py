"""What kind of file to write."""

from dataclasses import dataclass
from typing import Literal

from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import Head, InputType, Precision
from unetrt.runtime.pixels.normalisation import Normalisation


@dataclass(frozen=True)
class Options:
    """What kind of file to write.

    Attributes
    ----------
    tile
        Height and width of the input, in pixels.
    precision
        What the graph computes in.
    head
        What comes out.
    batch
        Tiles in one pass.
    input
        What goes in: `float32` normalised grey values, `uint8` or `uint16` raw ones.
    normalisation
        `fixed` freezes a normalisation that is measured on each frame at what every other verified frame has; None
        keeps it.
    """

    tile: tuple[int, int]
    precision: Precision = "fp32"
    head: Head = "logits"
    batch: int = 1
    input: InputType = "float32"
    normalisation: Literal["fixed"] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"a batch of {self.batch} tiles is none: use 1 or more")

    def measures(self, trained: Normalisation) -> bool:
        """Tell whether frames decide what the file holds: ranges, or constants instead of the trained normalisation."""
        return self.precision == "int8" or (self.normalisation == "fixed" and trained.mode != "fixed")
