"""Validation: the network, run over whole images through the runtime's tiling, normalisation and instances.

Scores are of all images together. `draw_sheet` shows images beside their results; `whole_frame_scores` is the reference
for tiled results.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.planner import GIB, Budget, FrameSize, best_tile
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import Decoding, ModelSpec
from unetrt.runtime.pixels.drawing import overlay
from unetrt.runtime.pixels.frames import as_image
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import SQUARE
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.dataset import AnnotatedImage, Dataset
from unetrt.trainer.evaluation import Tally, evaluate_classes, evaluate_instances, pooled
from unetrt.trainer.targets import Target
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.unet import UNet

# Memory budget of the validation tile, in bytes; the activations of training are held beside it.
MEMORY = 2 * GIB
# Number of different tiles of a validation: kernels are compiled and kept for each.
MOST_TILES = 8
# Scores closer than this are a tie, which the order of summation decides; where their standard deviation is above 1,
# closer than this share of it.
TIE = 1e-4
# The sheet: number of images, columns of two pictures each, and the largest side of a picture in frame pixels.
IMAGES, COLUMNS, SIDE = 6, 2, 512


@dataclass(frozen=True)
class Scores:
    """Scores of a network on all validation images together; shares are from 0 to 1.

    Attributes
    ----------
    iou
        Intersection over union of the foreground; for class maps the mean over the classes.
    seg, ap
        The Cell Tracking Challenge's SEG, and the average precision at an IoU of 0.5; None for class maps.
    merged
        Number of objects found as one with another; None for class maps.
    """

    iou: float
    seg: float | None = None
    ap: float | None = None
    merged: int | None = None

    @classmethod
    def of(cls, tally: Tally) -> "Scores":
        """Return the scores of a tally."""
        if tally.objects is None:
            return cls(tally.pixels.iou)
        return cls(tally.pixels.iou, tally.objects.seg, tally.objects.average_precision(), tally.objects.merged)

    @property
    def decisive(self) -> float:
        """The score that selects the best network: the mean of IoU, SEG and AP, as far as they are defined.

        SEG alone ignores objects found where there are none, and is mostly chance while it is low.
        """
        known = [score for score in (self.iou, self.seg, self.ap) if score is not None]
        return sum(known) / len(known)

    def __str__(self) -> str:
        shares = (("IoU", self.iou), ("SEG", self.seg), ("AP", self.ap))
        shown = "  ".join(f"{name} {share:.3f}" for name, share in shares if share is not None)
        return shown if self.merged is None else f"{shown}  merged {self.merged}"


@dataclass(frozen=True)
class ValidatedImage:
    """A validation image and its segmentation.

    Attributes
    ----------
    image
        The image and its annotation.
    labels
        (H, W), predicted: instances, int32, or a class map, uint8.
    tally
        Agreement of `labels` with the annotation.
    """

    image: AnnotatedImage
    labels: NDArray[Any]
    tally: Tally


def spec_of(
    net: UNet,
    tile: tuple[int, int],
    class_names: tuple[str, ...],
    normalisation: Normalisation,
    decoding: Decoding,
) -> ModelSpec:
    """Return the spec of a network in torch, with head `logits` and a tile (H, W) in pixels."""
    return ModelSpec(
        tile=tile,
        halo=net.shape.geometry.halo,
        grid=net.shape.geometry.grid,
        channels=net.shape.channels,
        classes=class_names,
        normalisation=normalisation,
        decoding=decoding,
    )


class ValidationPlan:
    """The tile of each size of validation images.

    Parameters
    ----------
    sizes
        Number of images of each size (H, W), in pixels.
    shape
        Shape of the network.
    tta
        Whether each image is segmented in the 8 symmetries of the square.

    Attributes
    ----------
    tiles
        Tile (H, W) for each size: the planned one for the sizes with the most pixels, one for all others together.
    macs
        Multiply-accumulates of a validation.

    Raises
    ------
    TileError
        No tile fits into the memory of a validation.
    """

    def __init__(self, sizes: Counter[FrameSize], shape: UNetShape, tta: bool = False) -> None:
        by_pixels = sorted(sizes, key=lambda size: (-size[0] * size[1] * sizes[size], size))
        alone = len(sizes) if len(sizes) <= MOST_TILES else MOST_TILES - 1
        groups = [[size] for size in by_pixels[:alone]] + [by_pixels[alone:]]
        self.tiles: dict[FrameSize, tuple[int, int]] = {}
        self.macs = 0
        for group in filter(None, groups):
            frames = [copy for size in group for copy in _copies(size, tta) * sizes[size]]
            planned = best_tile(frames, shape, Budget(memory=MEMORY))
            self.tiles |= dict.fromkeys(group, planned.tile)
            self.macs += planned.macs


def _copies(size: FrameSize, tta: bool) -> list[FrameSize]:
    """Return the sizes of the copies of an image that are segmented; half of the symmetries swap height and width."""
    return [size, size[::-1]] * (len(SQUARE) // 2) if tta else [size]


class Validator:
    """Runs a network over a validation set.

    Parameters
    ----------
    dataset
        The validation set.
    net
        The network. Each call uses its current weights.
    normalisation, target
        As in training.
    tta
        Whether to average over the 8 symmetries of the square (test-time augmentation), which takes 8 times as long.

    Attributes
    ----------
    macs
        Multiply-accumulates of a validation.
    """

    def __init__(
        self, dataset: Dataset, net: UNet, normalisation: Normalisation, target: Target, tta: bool = False
    ) -> None:
        self._dataset, self._net, self._tta = dataset, net, tta
        plan = ValidationPlan(dataset.sizes, net.shape, tta)
        self.macs = plan.macs
        self._specs = {
            size: spec_of(net, tile, target.class_names, normalisation, target.decoding)
            for size, tile in plan.tiles.items()
        }

    def __call__(self) -> tuple[Scores, list[ValidatedImage]]:
        """Return the network's scores, and each image with its result, in the order of the dataset."""
        training = self._net.training
        self._net.eval()
        images = self._dataset.images
        results: dict[int, ValidatedImage] = {}
        for size, spec in self._specs.items():
            with TorchSession(self._net, spec) as session, Segmenter(session) as segmenter:
                for index, image in enumerate(images):
                    if image.labels.shape == size:
                        results[index] = self._segment(image, segmenter)
        self._net.train(training)
        ordered = [results[index] for index in range(len(images))]
        return Scores.of(pooled([result.tally for result in ordered])), ordered

    def _segment(self, image: AnnotatedImage, segmenter: Segmenter) -> ValidatedImage:
        frame = as_image(image.frame)
        if not self._dataset.instances:
            classes = segmenter.segment(frame, tta=self._tta).labels
            count = len(self._dataset.class_names)
            return ValidatedImage(image, classes, evaluate_classes(classes, image.labels, count, image.ignored))
        found = segmenter.objects(frame, tta=self._tta).labels
        return ValidatedImage(image, found, evaluate_instances(found, image.labels, image.ignored, warping=False))


def draw_sheet(path: Path, results: Sequence[ValidatedImage]) -> None:
    """Write a PNG of up to 6 images from the worst to the best: the annotation on the left, the result on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = sorted(results, key=lambda result: Scores.of(result.tally).decisive)
    chosen = [ranked[index] for index in np.unique(np.linspace(0, len(ranked) - 1, IMAGES).round().astype(int))]
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for result, (left, right) in zip(chosen, axes.reshape(-1, 2), strict=False):
        frame = result.image.frame[:, :SIDE, :SIDE]
        for axis, labels in ((left, result.image.labels), (right, result.labels)):
            axis.imshow(overlay(frame, labels[:SIDE, :SIDE]), interpolation="nearest")
        name = result.image.name.encode(errors="replace").decode()  # a file's name need not be UTF-8
        left.set_title(f"{name}: annotation", fontsize=7, loc="left", parse_math=False)
        right.set_title(str(Scores.of(result.tally)), fontsize=7, loc="left", parse_math=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130)


def whole_frame_scores(
    checkpoint: Checkpoint, frame: NDArray[Any], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Return the logits (classes, H, W) of a raw frame (H, W) or (C, H, W) from one pass of torch, without TF32."""
    geometry, net = checkpoint.shape.geometry, checkpoint.network().to(device)
    tile = (geometry.side_for(frame.shape[-2]), geometry.side_for(frame.shape[-1]))
    spec = spec_of(net, tile, checkpoint.class_names, checkpoint.normalisation, checkpoint.decoding)
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exactly, TorchSession(net, spec) as session:
        return Segmenter(session, lanes=1).scores(frame)


def wrong_pixels(labels: NDArray[Any], scores: NDArray[np.float32]) -> float:
    """Return the share of labels (H, W) that are not the best class of scores (classes, H, W), ties left out."""
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > TIE * max(1.0, float(scores.std()))
    return float((labels != scores.argmax(axis=0))[clear].mean()) if clear.any() else 0.0
