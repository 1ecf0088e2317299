"""Recipes: everything about a training that is a choice, as one value."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unetrt.runtime.cost import UNetShape
from unetrt.runtime.errors import OptionError
from unetrt.runtime.normalisation import Mode
from unetrt.trainer.augmentation import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained. The defaults are the paper's (Ronneberger et al. 2015, section 3).

    Attributes
    ----------
    depth, base
        Poolings, and feature channels of the first level.
    dropout
        Rate at the end of the contracting path.
    tile
        Side of the network's input, in pixels; the largest legal side up to it is used.
    batch
        Tiles a step.
    optimiser
        `sgd` with momentum 0.99, or `adamw`.
    rate
        Learning rate.
    schedule
        `constant`, or `cosine`: a short linear rise, then half a cosine down to 0 at the end of the budget.
    balance
        Whether w_c balances the classes' frequencies.
    w0, sigma
        Weight of the separation border and its reach in pixels.
    separation_border
        Pixels of background cut between touching objects.
    bf16
        Whether the network computes in bfloat16 where the device has it in hardware; weights stay float32.
    normalisation
        How grey values become network input.
    augmentation
        How much samples vary.
    """

    depth: int = 4
    base: int = 64
    dropout: float = 0.5
    tile: int = 572
    batch: int = 1
    optimiser: Literal["sgd", "adamw"] = "sgd"
    rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    balance: bool = True
    w0: float = 10.0
    sigma: float = 5.0
    separation_border: int = 2
    bf16: bool = False
    normalisation: Mode = "percentile"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        smallest = self.shape(1, 2).geometry.smallest
        rules = (
            ("tile", self.tile, self.tile >= smallest, f"{smallest} or more at depth {self.depth}"),
            ("batch", self.batch, self.batch >= 1, "1 or more"),
            ("rate", self.rate, self.rate > 0, "a number above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "a number from 0 to below 1"),
            ("separation border", self.separation_border, self.separation_border >= 0, "0 or more"),
            ("w0", self.w0, self.w0 >= 0, "0 or more"),
            ("sigma", self.sigma, self.sigma > 0, "a number above 0"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise OptionError(f"{name} {value} does not work: use {rule}")

    def shape(self, channels: int, classes: int) -> UNetShape:
        """Return the network for data of so many channels and classes."""
        return UNetShape(self.depth, self.base, channels, classes)

    def legal_tile(self) -> int:
        """Return the largest legal tile side that is not above `tile`."""
        geometry = UNetShape(self.depth).geometry
        return geometry.side_for(self.tile - 2 * geometry.halo - geometry.grid + 1)

    def with_options(self, **options: Any) -> "Recipe":
        """Return a copy with those options changed that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


RECIPES = {
    # A shallow, thin net and small tiles take some 40 steps in the time of one of the paper's: what minutes allow.
    "modern": Recipe(
        depth=3,
        base=16,
        dropout=0.0,
        tile=284,
        optimiser="adamw",
        rate=1e-3,
        schedule="cosine",
        balance=False,
        bf16=True,
    ),
    "paper": Recipe(),
}
DEFAULT_RECIPE = "modern"
