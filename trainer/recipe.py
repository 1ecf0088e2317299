"""Recipes: all hyperparameters of the network and its training, as one value.

>>> RECIPES["modern"].with_options(depth=4, zoom=1.2).legal_tile()
284
"""

from dataclasses import dataclass, field, fields, replace
from math import cos, inf, pi
from typing import Any, Literal, get_args

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.pixels.normalisation import Mode
from unetrt.trainer.augmentation import Augmentation
from unetrt.trainer.targets import TARGETS, TargetName

Schedule = Literal["constant", "cosine", "poly"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# The linear warm-up of cosine and poly, as a share of the budget, and the share at which it starts, so that the first
# step has a rate above 0. Chosen, not tuned.
WARM_UP, HEAD_START = 0.05, 0.01
# Far beyond any training, so that a number with a digit too many is refused before it takes hours or all memory: side
# of a tile in pixels, tiles in one step, factor of random scaling.
MAX_TILE, MAX_BATCH, MAX_ZOOM = 1 << 14, 1 << 12, 16
# Exponent of the polynomial decay, as in nnU-Net and DeepLab.
POWER = 0.9


@dataclass(frozen=True)
class Recipe:
    """Network, loss and optimisation. The defaults are the paper's (Ronneberger et al. 2015, section 3).

    Attributes
    ----------
    depth, base
        Number of poolings, and of feature channels of the first level.
    dropout
        Rate at the end of the contracting path.
    tile
        Side of the training tile, in pixels; rounded down to a legal side.
    batch
        Tiles per step.
    optimiser
        `sgd` with momentum 0.99, or `adamw`.
    rate
        Learning rate.
    schedule
        `constant`; `cosine`: linear warm-up, then half a cosine down to 0 at the end of the budget; `poly`: the same
        warm-up, then (1 - share of the budget spent)^0.9.
    average
        Decay of the exponential moving average of the weights, which is validated and saved; 0: no average.
    balance
        Whether class weights w_c balance the classes' frequencies.
    foreground
        Weight of the pixels of instances relative to that of background.
    core
        Weight of the pixels of cores relative to that of rims, beside the separation weights; for target `cores`.
    w0, sigma
        Largest separation weight, and its reach in pixels.
    target
        What the network learns from instances: `cores` (background, rim and core), or the paper's `border` (foreground,
        with background cut between touching objects); see `unetrt.trainer.targets`.
    rim
        Width of the rim at most, as a share of the objects' median diameter; for target `cores`.
    separation_border
        Width in pixels of the background cut between touching objects; for target `border`.
    mixed
        Whether the network computes in 16 bits on devices that support them in hardware; weights stay float32.
    normalisation
        Normalisation of grey values to network input.
    augmentation
        Random variation of the tiles.
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
    foreground: float = 1.0
    core: float = 1.0
    w0: float = 10.0
    sigma: float = 5.0
    target: TargetName = "border"
    rim: float = 0.2
    separation_border: int = 2
    mixed: bool = False
    normalisation: Mode = "percentile"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        smallest = self.shape(1, 2).geometry.smallest
        rules = (
            ("tile", self.tile, self.tile >= smallest, f"{smallest} or more at depth {self.depth}"),
            ("tile", self.tile, self.tile <= max(MAX_TILE, smallest), f"{MAX_TILE} or less"),
            ("batch", self.batch, 1 <= self.batch <= MAX_BATCH, f"1 or more, up to {MAX_BATCH}"),
            ("rate", self.rate, 0 < self.rate < inf, "a number above 0"),
            ("average", self.average, 0 <= self.average < 1, "a number from 0 to below 1, such as 0.999"),
            ("zoom", self.augmentation.zoom, 1 <= self.augmentation.zoom <= MAX_ZOOM, f"1 or more, up to {MAX_ZOOM}"),
            ("gamma", self.augmentation.gamma, 0 <= self.augmentation.gamma < inf, "0 or more, such as 0.3"),
            ("invert", self.augmentation.invert, 0 <= self.augmentation.invert <= 1, "a share from 0 to 1"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "a number from 0 to below 1"),
            ("target", self.target, self.target in TARGETS, " or ".join(TARGETS)),
            ("rim", self.rim, 0 < self.rim <= 1, "a number above 0, up to 1, such as 0.2"),
            ("separation border", self.separation_border, self.separation_border >= 0, "0 or more"),
            ("foreground", self.foreground, 0 < self.foreground < inf, "a number above 0, such as 1.6"),
            ("core", self.core, 0 < self.core < inf, "a number above 0, such as 2.5"),
            ("w0", self.w0, 0 <= self.w0 < inf, "0 or more"),
            ("sigma", self.sigma, 0 < self.sigma < inf, "a number above 0"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise OptionError(f"invalid {name} {value}: use {rule}")

    def shape(self, channels: int, classes: int) -> UNetShape:
        """Return the shape of the network for data with these numbers of channels and classes."""
        return UNetShape(self.depth, self.base, channels, classes)

    def legal_tile(self) -> int:
        """Return the largest legal tile side up to `tile`, in pixels."""
        geometry = UNetShape(self.depth).geometry
        return geometry.side_for(self.tile - 2 * geometry.halo - geometry.grid + 1)

    def rate_at(self, spent: float) -> float:
        """Return the learning rate after a share `spent` of the budget, 0 to 1."""
        if self.schedule == "constant":
            return self.rate
        spent = min(spent, 1.0)
        fall = 0.5 * (1 + cos(pi * spent)) if self.schedule == "cosine" else (1 - spent) ** POWER
        return self.rate * min(1.0, (spent + HEAD_START) / WARM_UP) * fall

    def with_options(self, **options: Any) -> "Recipe":
        """Return a copy with changed attributes of the recipe or of its augmentation; None leaves one unchanged."""
        given = {name: value for name, value in options.items() if value is not None}
        target = given.get("target", self.target)
        for name, needed in (("rim", "cores"), ("core", "cores"), ("separation_border", "border")):
            if name in given and target in TARGETS and target != needed:
                option = name.replace("_", "-")
                raise OptionError(f"{option} is an option of target {needed}, not of {target}: add --target {needed}")
        varied = {name: given.pop(name) for name in given.keys() & {field.name for field in fields(Augmentation)}}
        return replace(self, **given, augmentation=replace(self.augmentation, **varied))


def options_of() -> tuple[str, ...]:
    """Return the names of all options of `Recipe.with_options`."""
    return tuple(
        field.name for kind in (Recipe, Augmentation) for field in fields(kind) if field.name != "augmentation"
    )


RECIPES = {
    # For trainings of minutes: about 40 steps of this shallow, narrow network take as long as one step of the paper's.
    "modern": Recipe(
        depth=3,
        base=16,
        dropout=0.0,
        tile=284,
        optimiser="adamw",
        rate=1e-3,
        schedule="cosine",
        balance=False,
        target="cores",
        foreground=1.6,
        core=2.5,
        w0=16.0,
        mixed=True,
        average=0.999,
        augmentation=Augmentation(zoom=1.3),
    ),
    "paper": Recipe(),
}
DEFAULT_RECIPE = "modern"
