"""Recipes: everything about a training that is a choice, as one value."""

from dataclasses import asdict, dataclass, field, fields, replace
from math import cos, inf, pi
from typing import Any, Literal, get_args

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.pixels.normalisation import Mode
from unetrt.trainer.augmentation import Augmentation

Schedule = Literal["constant", "cosine", "poly"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# Share of the budget in which the rate rises, for cosine and poly, and as if how much of it were over at first: the
# first steps shall not be without any rate. Chosen, not tuned.
RISE, HEAD_START = 0.05, 0.01
# Of the polynomial decay, as in nnU-Net and DeepLab.
POWER = 0.9


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
        `constant`; `cosine`: a short linear rise, then half a cosine down to 0 at the end of the budget; `poly`: the
        same rise, then (1 - share of the budget) to the power of 0.9.
    average
        Decay of the exponential moving average of the weights, which is what is validated and kept; 0: none.
    balance
        Whether w_c balances the classes' frequencies.
    w0, sigma
        Weight of the separation border and its reach in pixels.
    separation_border
        Pixels of background cut between touching objects.
    mixed
        Whether the network computes in 16 bits where the device has them in hardware; weights stay float32.
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
    schedule: Schedule = "constant"
    average: float = 0.0
    balance: bool = True
    w0: float = 10.0
    sigma: float = 5.0
    separation_border: int = 2
    mixed: bool = False
    normalisation: Mode = "percentile"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        smallest = self.shape(1, 2).geometry.smallest
        rules = (
            ("tile", self.tile, self.tile >= smallest, f"{smallest} or more at depth {self.depth}"),
            ("batch", self.batch, self.batch >= 1, "1 or more"),
            ("rate", self.rate, 0 < self.rate < inf, "a number above 0"),
            ("average", self.average, 0 <= self.average < 1, "a number from 0 to below 1, such as 0.999"),
            ("zoom", self.augmentation.zoom, 1 <= self.augmentation.zoom < inf, "1 or more, such as 1.4"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "a number from 0 to below 1"),
            ("separation border", self.separation_border, self.separation_border >= 0, "0 or more"),
            ("w0", self.w0, 0 <= self.w0 < inf, "0 or more"),
            ("sigma", self.sigma, 0 < self.sigma < inf, "a number above 0"),
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

    def rate_at(self, spent: float) -> float:
        """Return the learning rate when a share `spent` of the budget, 0 to 1, is spent."""
        if self.schedule == "constant":
            return self.rate
        spent = min(spent, 1.0)
        fall = 0.5 * (1 + cos(pi * spent)) if self.schedule == "cosine" else (1 - spent) ** POWER
        return self.rate * min(1.0, (spent + HEAD_START) / RISE) * fall

    def to_dict(self) -> dict[str, Any]:
        """Return all choices as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Recipe":
        """Return what `to_dict` gave."""
        return cls(**{**stored, "augmentation": Augmentation(**stored["augmentation"])})

    def with_options(self, **options: Any) -> "Recipe":
        """Return a copy with those options, of the recipe or its augmentation, changed that are not None."""
        given = {name: value for name, value in options.items() if value is not None}
        ways = {field.name for field in fields(Augmentation)}
        varied = replace(self.augmentation, **{name: given.pop(name) for name in given.keys() & ways})
        return replace(self, **given, augmentation=varied)


def options_of() -> tuple[str, ...]:
    """Return the names of all choices that `Recipe.with_options` takes."""
    return tuple(
        field.name for kind in (Recipe, Augmentation) for field in fields(kind) if field.name != "augmentation"
    )


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
        mixed=True,
        average=0.999,
    ),
    "paper": Recipe(),
}
DEFAULT_RECIPE = "modern"
