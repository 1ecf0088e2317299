"""Benchmarks of training: its weight map, its augmentation, and its steps.

The weight map and the augmentation are compared with the same in SciPy, which most code uses, after both have been
checked to agree. They run on one core.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from math import pi
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetrt.benchmarks.cases import BenchCase, Figures, store_drawn, stored
from unetrt.benchmarks.limits import DTYPES, Limits, timed
from unetrt.benchmarks.processes import in_turn, one_core
from unetrt.benchmarks.result import Measure
from unetrt.runtime.errors import ParityError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.augmentation import coordinates, look_up, vary_grey_values
from unetrt.trainer.dataset import AnnotatedImage, Dataset, class_names
from unetrt.trainer.drawn_cells import Drawing, draw
from unetrt.trainer.learner import Learner, alone, keep_freed_memory
from unetrt.trainer.recipe import RECIPES, Recipe
from unetrt.trainer.samples import Sampler, TrainingSample, prepare, target_for
from unetrt.trainer.targets import Labels, separation_weights
from unetrt.trainer.training import macs_of_step, validations_of
from unetrt.trainer.validation import Validator

Array = NDArray[Any]
OURS = "unetrt"

# --- The weight map

# Largest side of a micrograph, in pixels, for a transform an object: at 2048 it would take thousands, for an hour.
MOST_FOR_EACH = 512
W0, SIGMA = 10.0, 5.0
# Tolerance that `separation_weights` documents.
ALLOWED_WEIGHTS = 1e-4
ONE, EACH = "one transform", "a transform an object"


@dataclass(frozen=True)
class WeightMap(BenchCase):
    """The separation weights of drawn cells, beside a distance transform of the whole image for each object.

    Attributes
    ----------
    sides
        Height and width of the micrographs, in pixels.
    """

    NAME: ClassVar[str] = "weight-map"
    MEASURES: ClassVar[str] = (
        "Computing the separation weights of a drawn micrograph, objects 35 % of it, beside one distance transform of "
        "the whole image and beside one for each object, on one core."
    )
    HELP: ClassVar[str] = "Time the weight map of drawn cells."

    sides: tuple[int, ...] = field(default=(512, 2048), metadata={"--side": "Side of drawn images, pixels."})

    def prepare(self, folder: Path) -> None:
        """Draw a micrograph of each size; up to `MOST_FOR_EACH` the weights of both methods must agree."""
        for side in self.sides:
            store_drawn(folder / str(side), (side, side), 1)
            if side <= MOST_FOR_EACH:
                require_equal_weights(_drawing(folder / str(side)).labels)

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the median seconds of each method, by side and method."""
        seconds: dict[str, Any] = {}
        for side in self.sides:
            objects = _drawing(folder / str(side)).labels
            runs: dict[str, Callable[[], object]] = {
                OURS: partial(separation_weights, objects, W0, SIGMA),
                ONE: partial(ndimage.distance_transform_edt, objects == 0),
            }
            if side <= MOST_FOR_EACH:
                runs[EACH] = partial(for_each_object, objects)
            with one_core():
                seconds |= _medians(f"{side}: ", in_turn(runs))
        return seconds

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield seconds, our rate and our speed-up for each side."""
        for side in self.sides:
            ours = seconds[f"{side}: {OURS}"]
            yield Measure.of(f"{side}: {OURS}", "s", ours)
            yield Measure.of(f"{side}: {OURS}, rate", "Mpixel/s", side * side / 1e6 / ours)
            for name in (ONE, EACH):
                if other := seconds.get(f"{side}: {name}"):
                    yield Measure.of(f"{side}: {name}", "s", other)
                    yield Measure.of(f"{side}: {OURS} against {name}", "x", other / ours)

    def detail(self, _seconds: Figures, _rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the options and the constants."""
        return {**self.facts(), "w0": W0, "sigma": SIGMA}


def for_each_object(objects: Labels, w0: float = W0, sigma: float = SIGMA) -> NDArray[np.float64]:
    """Return the weights w0 exp(-(d1 + d2)^2 / (2 sigma^2)) by a distance transform of the whole image an object.

    Parameters
    ----------
    objects
        (H, W) int32, numbered from 1, 0 is the background; two or more.
    w0, sigma
        Weight where two objects touch, and the length in pixels over which it falls.

    Returns
    -------
    (H, W). Distances are to the nearest pixel of an object, as in most code, so that they are those to its border
    outside of the objects only. A running minimum keeps the two smallest, which is faster than sorting all.
    """
    nearest, second = np.full((2, *objects.shape), np.inf)
    for number in range(1, int(objects.max()) + 1):
        distance = ndimage.distance_transform_edt(objects != number)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    weights: NDArray[np.float64] = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return weights


def require_equal_weights(objects: Labels) -> None:
    """Raise ParityError where the two methods weight a pixel of the background differently."""
    outside = objects == 0
    off = np.abs(separation_weights(objects, W0, SIGMA) - for_each_object(objects))[outside].max(initial=0)
    if off > ALLOWED_WEIGHTS:
        raise ParityError(f"weights differ by up to {off:.2g}: {ALLOWED_WEIGHTS:g} is allowed, and nothing is timed")


# --- The augmentation

# Tiles that are drawn for one measurement.
TILES = 8
# Order of the spline through the pixels: that of `Sampler`, and that of most code.
ORDERS = {1: "SciPy, linear", 3: "SciPy, cubic"}
# Largest root mean square of the pixels' difference, relative to their standard deviation: rounding of the coordinates
# alone; and the noise that a cubic spline keeps and a linear one averages out (0.04 on these micrographs).
ALLOWED_PIXELS = {1: 1e-4, 3: 0.1}
# Largest share of pixels that lie so near to the middle between two that the methods choose different ones.
ALLOWED_CLASSES = 1e-4


@dataclass(frozen=True)
class AugmentedTiles(BenchCase):
    """Augmented training tiles per second and core, beside the same in SciPy.

    Attributes
    ----------
    recipes
        Names of recipes, which determine the size of tiles and how much they vary.
    side
        Height and width of the micrograph, in pixels.
    """

    NAME: ClassVar[str] = "augmentation"
    MEASURES: ClassVar[str] = (
        "Drawing augmented training tiles, with shift, rotation, reflection, displacements and grey values, classes "
        "and weights included, beside the same with SciPy's splines, on one core."
    )
    HELP: ClassVar[str] = "Time the drawing of augmented tiles."

    recipes: tuple[str, ...] = field(default=tuple(RECIPES), metadata={"--recipe": "Name of a recipe."})
    side: int = field(default=700, metadata={"--side": "Side of the micrograph, pixels."})

    def prepare(self, folder: Path) -> None:
        """Draw the micrograph; at equal coordinates all methods must yield the same tile."""
        store_drawn(folder, (self.side, self.side), 1)
        for name in self.recipes:
            require_equal_tiles(sample_of(_drawing(folder), RECIPES[name]), RECIPES[name])

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the median seconds of `TILES` tiles, by recipe and method."""
        torch.set_num_threads(1)
        seconds: dict[str, Any] = {}
        for name in self.recipes:
            recipe = RECIPES[name]
            sample = sample_of(_drawing(folder), recipe)
            runs = {OURS: partial(_several, Sampler([sample], recipe, 0).batch)}
            for order, title in ORDERS.items():
                runs[title] = partial(_several, SplineTiles(sample, recipe, order).draw)
            with one_core():
                seconds |= _medians(f"{name}: ", in_turn(runs))
        return seconds

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield rates and our speed-up for each recipe, which is named by the side of its tile."""
        for name in self.recipes:
            side, ours = RECIPES[name].legal_tile(), seconds[f"{name}: {OURS}"]
            yield Measure.of(f"{side}: {OURS}", "tiles/s", TILES / ours)
            for title in ORDERS.values():
                other = seconds[f"{name}: {title}"]
                yield Measure.of(f"{side}: {title}", "tiles/s", TILES / other)
                yield Measure.of(f"{side}: {OURS} against {title}", "x", other / ours)
            yield Measure.of(f"{side}: {OURS}, rate", "Mpixel/s", TILES * side * side / 1e6 / ours)

    def detail(self, _seconds: Figures, _rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the frame and the recipes."""
        recipes = {name: asdict(RECIPES[name]) for name in self.recipes}
        return {"frame": [self.side, self.side], "recipes": recipes}


class SplineTiles:
    """Draws tiles of one sample as most code does, by splines, in the same steps as `Sampler` and varied as much.

    Parameters
    ----------
    sample
        Frame (1, H, W), and classes and weights.
    recipe
        Size and variation of the tiles; zoom is not supported.
    order
        Order of the spline through the frame's pixels: 1, as in `Sampler`, or 3, whose coefficients are computed here.
    """

    def __init__(self, sample: TrainingSample, recipe: Recipe, order: int) -> None:
        self._sample, self._side, self._how, self._order = sample, recipe.legal_tile(), recipe.augmentation, order
        halo = recipe.shape(1, 2).geometry.halo
        self._inner = slice(halo, self._side - halo)
        frame = sample.frame[0].numpy()
        self._frame = ndimage.spline_filter(frame, order, np.float32, mode="mirror") if order > 1 else frame
        self._target = sample.target.numpy()

    def draw(self, step: int) -> tuple[Tensor, Array]:
        """Return the tile (1, side, side) float32 of a step, and classes and weights of its inner pixels."""
        rng, generator = np.random.default_rng(step), torch.Generator().manual_seed(step)
        centre = self._sample.centre(generator).numpy()
        image, target = self.read(self.coordinates(centre, rng))
        return vary_grey_values(torch.from_numpy(image[None]), self._how, generator), target

    def coordinates(self, centre: Array, rng: np.random.Generator) -> Array:
        """Return each pixel's place in the frame, (2, side, side) float32, row and column; `centre` is (2,)."""
        angle = rng.uniform(-1, 1) * self._how.rotation * pi / 180
        mirror = -1.0 if self._how.flips and rng.random() < 0.5 else 1.0
        cosine, sine = np.cos(angle), np.sin(angle)
        columns = np.arange(self._side, dtype=np.float32) - (self._side - 1) / 2
        rows = columns[:, None]
        turned = (cosine * rows - mirror * sine * columns, sine * rows + mirror * cosine * columns)
        vectors = rng.normal(0, self._how.displacement, (2, self._how.coarse, self._how.coarse))
        return np.stack(turned).astype(np.float32) + centre[:, None, None] + spline_displacements(vectors, self._side)

    def read(self, at: Array) -> tuple[Array, Array]:
        """Return the frame's pixels at coordinates (2, side, side), and classes and weights (2, h, w) of the inner."""
        image = ndimage.map_coordinates(self._frame, at, order=self._order, mode="mirror", prefilter=False)
        inner = at[:, self._inner, self._inner]
        planes = [ndimage.map_coordinates(plane, inner, order=0, mode="mirror") for plane in self._target]
        return image, np.stack(planes)


def spline_displacements(vectors: Array, side: int) -> Array:
    """Return displacements (2, side, side): a cubic spline through vectors (2, n, n), spread from end to end."""
    places = np.linspace(0, vectors.shape[-1] - 1, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(places, places, indexing="ij"))
    return np.stack([ndimage.map_coordinates(plane, grid, np.float32, mode="mirror") for plane in vectors])


def require_equal_tiles(sample: TrainingSample, recipe: Recipe, seed: int = 0) -> None:
    """Raise ParityError where SciPy's tile differs from ours at the same coordinates."""
    side, halo = recipe.legal_tile(), recipe.shape(1, 2).geometry.halo
    generator = torch.Generator().manual_seed(seed)
    at = coordinates((side, side), sample.centre(generator), recipe.augmentation, generator)
    ours = look_up(sample.frame, at, "bilinear")[0].numpy()
    target = look_up(sample.target, at[halo:-halo, halo:-halo], "nearest").numpy()
    for order, name in ORDERS.items():
        image, planes = SplineTiles(sample, recipe, order).read(at.permute(2, 0, 1).numpy())
        off = float(np.sqrt(np.mean((image - ours) ** 2)) / ours.std())
        others = float((planes != target).any(axis=0).mean())
        if off > ALLOWED_PIXELS[order] or others > ALLOWED_CLASSES:
            raise ParityError(f"{name}: pixels are off by {off:.2g}, classes at {others:.2g}: nothing is timed")


# --- Training steps

# Drawn images from which tiles are taken, and their side in pixels.
IMAGES, SIDE = 8, 700
# Steps before anything is timed: kernels are chosen and compiled in them.
WARM_UP = 5
# name -> (16 bits, torch.compile)
WAYS = {"eager": (False, False), "eager, 16 bits": (True, False), "compiled, 16 bits": (True, True)}
NEW, SAME, VALIDATION, LIMIT = "new tiles", "one tile", "validation", "matrix product"
# Drawn images that are validated, 2 Mpixel, and the steps of the run whose share validations are.
VALIDATED, RUN = 4, 400
# Side of the matrices whose product is the limit of a step.
PRODUCT = 2048


@dataclass(frozen=True)
class TrainingSteps(BenchCase):
    """Training steps per second, eager and compiled, beside the limit of their arithmetic, and validations.

    A step with new tiles draws the tile, forward, backward and update; a step with the same tile saves the drawing.
    Matrix products of the same data type are timed in the same rounds. All ways share this process, as compiling takes
    long, and take turns. The process keeps freed memory, as `unetrt train` does.

    Attributes
    ----------
    recipe
        Network, tile, batch, optimiser.
    together
        Steps that are timed together, once with new tiles and once with the same.
    ways
        Names in `WAYS`.
    """

    NAME: ClassVar[str] = "training"
    MEASURES: ClassVar[str] = (
        "Steps of training on drawn cells, with new tiles and with the same tile in each step, beside matrix products, "
        "and validations of 2 Mpixel."
    )
    HELP: ClassVar[str] = "Time training steps."

    recipe: Recipe
    together: int = 20
    ways: tuple[str, ...] = tuple(WAYS)

    def facts(self) -> dict[str, Any]:
        """Return the recipe, the device, and how steps are timed."""
        return {**self._fixed(), "steps": self.together, "validated": VALIDATED, "product": PRODUCT}

    def _fixed(self) -> dict[str, Any]:
        device = alone().device
        gpu = device.type == "cuda"
        return {
            "recipe": asdict(self.recipe),
            "device": torch.cuda.get_device_name(device) if gpu else "cpu",
            # FP32 convolutions use TF32 where the hardware has it: torch's default.
            "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32) and gpu,
        }

    def prepare(self, _folder: Path) -> None:
        """Write nothing: every step draws its tiles."""

    def steps(self, _folder: Path) -> Mapping[str, Callable[[], Any]]:
        """Return one step a way; a way is set up and warmed up when it is first taken."""
        keep_freed_memory()

        @cache
        def data() -> tuple[Dataset, Sampler]:
            dataset = _dataset(*(draw((SIDE, SIDE), seed=number) for number in range(IMAGES)))
            samples = prepare(dataset, self.recipe, Normalisation())
            return dataset, Sampler(samples, self.recipe, 0, alone().device)

        @cache
        def training(way: str) -> WarmTraining:
            return WarmTraining(self.recipe, way, *data())

        return {way: lambda way=way: training(way).round(self.together) for way in self.ways}  # type: ignore[misc]

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the seconds of a step of each way, with new tiles and with the same, and those of a validation."""
        for name, figure in seconds.items():
            yield Measure.of(name, "GFLOP/s" if name.endswith(LIMIT) else "s", figure)

    def detail(self, seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return, by way: data type, seconds of a step, share in which the device waits for tiles, and of the limits.

        `limit` is the rate of matrix products in GFLOP/s, and `share` what a step with new tiles reaches of it.
        `validation` has the seconds of one, their number in a run of `steps`, and their share of its time.
        """
        latest: dict[str, Any] = {}
        for one in rounds:
            latest |= one["way"]
        return {"ways": {way: self._way(way, seconds, **known) for way, known in latest.items()}, **self._fixed()}

    def _way(self, way: str, seconds: Figures, dtype: str, gflop: float, times: int) -> dict[str, Any]:
        new, same, validation, limit = (seconds[f"{way}: {name}"] for name in (NEW, SAME, VALIDATION, LIMIT))
        validating = times * validation.median
        return {
            "dtype": dtype,
            "seconds": asdict(new),
            "waiting": max(0.0, 1 - same.median / new.median),
            "limit": limit.median,
            "share": gflop / new.median / limit.median,
            "validation": {
                "seconds": validation.median,
                "steps": RUN,
                "times": times,
                "share": validating / (validating + RUN * new.median),
            },
        }


class WarmTraining:
    """One way to train, warmed up."""

    def __init__(self, recipe: Recipe, way: str, dataset: Dataset, sampler: Sampler) -> None:
        mixed, compiled = WAYS[way]
        team, recipe = alone(), replace(recipe, mixed=mixed)
        target = target_for(recipe, dataset)
        shape = recipe.shape(1, len(target.class_names))
        self._learner = Learner(shape, recipe, 0, team, compiled)
        self._way, self._sampler, self._rate, self._device, self._step = way, sampler, recipe.rate, team.device, 0
        self._kept = sampler.batch(0)
        validated = replace(dataset, images=dataset.images[:VALIDATED])
        self._validator = Validator(validated, self._learner.result, Normalisation(), target)
        self._macs = macs_of_step(shape, recipe.legal_tile(), recipe.batch)
        self._train(WARM_UP, new=True)

    def round(self, steps: int) -> dict[str, Any]:
        """Return what is known of the way, seconds of a step and of a validation, and the rate of matrix products."""
        dtype = self._learner.dtype
        (precision,) = (name for name, one in DTYPES.items() if one == dtype)
        limits = Limits("gpu" if self._device.type == "cuda" else "cpu", (PRODUCT,), ())
        return {
            "way": {
                self._way: {
                    "dtype": str(dtype).removeprefix("torch."),
                    "gflop": 2 * self._macs / 1e9,
                    "times": validations_of(self._validator.macs / (self._macs * RUN)),
                }
            },
            f"{self._way}: {NEW}": timed(lambda: self._train(steps, new=True), self._device) / steps,
            f"{self._way}: {LIMIT}": limits.product_rate(precision) / 1e9,
            f"{self._way}: {SAME}": timed(lambda: self._train(steps, new=False), self._device) / steps,
            f"{self._way}: {VALIDATION}": timed(self._validator, self._device),
        }

    def _train(self, steps: int, new: bool) -> None:
        """Take steps with new tiles or with one."""
        for _ in range(steps):
            self._step += 1
            self._learner.step(self._sampler.batch(self._step) if new else self._kept, self._step, self._rate)


def sample_of(drawing: Drawing, recipe: Recipe) -> TrainingSample:
    """Return a drawn micrograph as a training sample."""
    (sample,) = prepare(_dataset(drawing), recipe, Normalisation())
    return sample


def _dataset(*drawings: Drawing) -> Dataset:
    images = tuple(AnnotatedImage(str(number), each.frame[None], each.labels) for number, each in enumerate(drawings))
    return Dataset(images, class_names(None), instances=True)


def _drawing(folder: Path) -> Drawing:
    (drawing,) = stored(folder)
    return drawing


def _several(draw_tile: Callable[[int], object]) -> None:
    for step in range(TILES):
        draw_tile(step)


def _medians(prefix: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {f"{prefix}{name}": median(values) for name, values in seconds.items()}
