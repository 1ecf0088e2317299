"""The training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.runtime.errors import TrainingError
from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.budget import Budget, ValidationClock
from unetrt.trainer.checkpoint import Checkpoint, state_of
from unetrt.trainer.dataset import Dataset
from unetrt.trainer.failures import translated
from unetrt.trainer.history import History
from unetrt.trainer.loss import weighted_cross_entropy
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.samples import Batch, Sampler, prepare
from unetrt.trainer.unet import UNet
from unetrt.trainer.validation import Scores, Validator

# Share of the budget in which a cosine schedule's rate rises.
RISE = 0.05
# The paper's momentum (section 3), so high that many earlier samples decide each step.
MOMENTUM = 0.99
# Frames kept in the checkpoint for the exporter's verification, and the largest side of each, in pixels.
KEPT_FRAMES, KEPT_SIDE = 4, 512


@dataclass(frozen=True)
class Progress:
    """What a training reports after each step.

    Attributes
    ----------
    step
        Steps done.
    spent
        Share of the budget spent.
    loss
        Of the step.
    scores
        Of the validation after this step, or None where there was none.
    """

    step: int
    spent: float
    loss: float
    scores: Scores | None


class Training:
    """One training run.

    Parameters
    ----------
    train, validation
        The data; same channels and classes.
    recipe
        How to train.
    folder
        Where best.safetensors, last.safetensors, history.csv and curves.png go.
    seed
        Of weights and samples.
    """

    def __init__(self, train: Dataset, validation: Dataset, recipe: Recipe, folder: Path, seed: int = 0) -> None:
        self._train, self._recipe, self._folder, self._seed = train, recipe, folder, seed
        self._validation = validation
        self._normalisation = normalisation_for(recipe, train)
        self._border = recipe.separation_border if train.instances else 0
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        shape = recipe.shape(train.channels, len(train.class_names))
        net = UNet(shape, recipe.dropout).initialise(generator).to(self._device)
        self.net: UNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimiser = _optimiser(self.net, recipe)
        self._sampler = Sampler(prepare(train, recipe, self._normalisation), recipe, generator)
        self._bf16 = recipe.bf16 and has_fast_bf16(self._device)
        self.history = History()

    def run(self, budget: Budget, report: Callable[[Progress], None] = lambda _: None) -> Path:
        """Train until the budget is spent; return the best checkpoint.

        Raises
        ------
        TrainingError
            The loss is not finite. The checkpoints written before it are whole.
        OutputError
            The folder cannot be written to.
        """
        validator = Validator(self._validation, self.net, self._normalisation, self._border)
        begin, step, spent = time.perf_counter(), 0, 0.0
        clock = ValidationClock()
        self.net.train()
        try:
            while spent < 1:
                step += 1
                with translated(f"training step {step}", "use a smaller --tile, --batch or --base"):
                    loss = self._step(self._sampler.batch(), step, self._rate(spent))
                spent = budget.spent(step, time.perf_counter() - begin)
                self.history.add_loss(step, loss)
                scores = None
                if clock.due(spent):
                    with clock.validating(spent):
                        scores = self._validate(validator, step, time.perf_counter() - begin)
                report(Progress(step, min(spent, 1), loss, scores))
        finally:
            validator.close()
            if self.history.losses:
                self.history.save(self._folder)
        return self._folder / "best.safetensors"

    def _step(self, batch: Batch, step: int, rate: float) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        tiles = batch.tiles.to(self._device, memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.net(tiles)
        loss = weighted_cross_entropy(logits, batch.classes.to(self._device), batch.weights.to(self._device))
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}, in {', '.join(batch.names)}: "
                f"lower the learning rate ({rate:.2g}) or look at that image"
            )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return value

    def _rate(self, spent: float) -> float:
        if self._recipe.schedule == "constant":
            return self._recipe.rate
        return self._recipe.rate * min(1, (spent + 0.01) / RISE) * 0.5 * (1 + math.cos(math.pi * min(spent, 1)))

    def _validate(self, validator: Validator, step: int, seconds: float) -> Scores:
        scores = validator()
        checkpoint = self._checkpoint(step, seconds, scores)
        if self.history.add_scores(step, scores):
            checkpoint.save(self._folder / "best.safetensors")
        checkpoint.save(self._folder / "last.safetensors")
        self.history.save(self._folder)
        return scores

    def _checkpoint(self, step: int, seconds: float, scores: Scores) -> Checkpoint:
        return Checkpoint(
            shape=self.net.shape,
            weights=state_of(self.net),
            class_names=self._train.class_names,
            normalisation=self._normalisation,
            annotation="instances" if self._train.instances else "classes",
            separation_border=self._border,
            frames=kept_frames(self._validation),
            frame_sizes=tuple((height, width, often) for (height, width), often in self._train.sizes.items()),
            training={
                "steps": step,
                "seconds": round(seconds, 1),
                "seed": self._seed,
                "images": len(self._train.images),
                "validation": asdict(scores),
                "recipe": asdict(self._recipe),
            },
        )


def normalisation_for(recipe: Recipe, dataset: Dataset) -> Normalisation:
    """Return the recipe's normalisation; `fixed` takes mean and deviation of each channel over the training images."""
    if recipe.normalisation != "fixed":
        return Normalisation(recipe.normalisation)
    pixels = [image.frame.reshape(dataset.channels, -1) for image in dataset.images]
    joined = np.concatenate(pixels, axis=1).astype(np.float64)
    deviation = joined.std(axis=1)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return Normalisation("fixed", offset=tuple(joined.mean(axis=1).tolist()), scale=tuple(scale.tolist()))


def kept_frames(dataset: Dataset) -> tuple[NDArray[Any], ...]:
    """Return some raw validation frames (C, H, W), cropped to a bounded size, spread over the set."""
    step = max(1, len(dataset.images) // KEPT_FRAMES)
    chosen = dataset.images[::step][:KEPT_FRAMES]
    return tuple(image.frame[:, :KEPT_SIDE, :KEPT_SIDE] for image in chosen)


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware; elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported())


def _optimiser(net: UNet, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(net.parameters(), lr=recipe.rate, momentum=MOMENTUM)
    return torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=1e-4)
