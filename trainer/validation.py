"""Validation by tiled inference, through the same geometry, normalisation and instances as in use."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.geometry.planner import GIB, Budget, best_tile
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.instances import instances
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.dataset import Annotated, Dataset
from unetrt.trainer.evaluation import Tally, evaluate_classes, evaluate_instances, pooled
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.unet import UNet

# Training holds its own activations; validation stays well below them.
MEMORY = 2 * GIB


@dataclass(frozen=True)
class Scores:
    """How good a network is on all validation images together; each share is from 0 to 1.

    Attributes
    ----------
    iou
        Intersection over union of the foreground; for class maps the mean over the classes.
    seg, ap
        The Cell Tracking Challenge's SEG, and the average precision at an IoU of 0.5; None for class maps.
    merged
        Objects found as one with another; None for class maps.
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
        """The score by which the best network is chosen: the mean of those that there are.

        SEG alone would not do: what is found where there is no object costs it nothing, and while it is low, chance
        decides it.
        """
        known = [score for score in (self.iou, self.seg, self.ap) if score is not None]
        return sum(known) / len(known)

    def __str__(self) -> str:
        shares = (("IoU", self.iou), ("SEG", self.seg), ("AP", self.ap))
        shown = "  ".join(f"{name} {share:.3f}" for name, share in shares if share is not None)
        return shown if self.merged is None else f"{shown}  merged {self.merged}"


@dataclass(frozen=True)
class Validated:
    """One validation image with what the network makes of it.

    Attributes
    ----------
    image
        The image and its annotation.
    labels
        (H, W), what was found: instances, int32, or the class map, uint8.
    tally
        How that agrees with the annotation.
    """

    image: Annotated
    labels: NDArray[Any]
    tally: Tally


class Validator:
    """Runs a network over a validation set.

    Parameters
    ----------
    dataset
        The validation set.
    net
        The network; used as it is at each call.
    normalisation, separation_border
        As in training.
    tta
        Whether to average over the 8 symmetries of the square, which takes 8 times as long.
    """

    def __init__(
        self, dataset: Dataset, net: UNet, normalisation: Normalisation, separation_border: int, tta: bool = False
    ) -> None:
        self._dataset, self._net, self._tta = dataset, net, tta
        geometry = net.shape.geometry
        spec = ModelSpec(
            tile=best_tile(dataset.sizes.elements(), net.shape, Budget(memory=MEMORY)).tile,
            halo=geometry.halo,
            grid=geometry.grid,
            channels=dataset.channels,
            classes=dataset.class_names,
            normalisation=normalisation,
            separation_border=separation_border,
        )
        self._segmenter = Segmenter(TorchSession(net, spec))

    def __call__(self) -> tuple[Scores, list[Validated]]:
        """Return the scores of the network as it is now, and each image with its result."""
        training = self._net.training
        self._net.eval()
        results = [self._validated(image) for image in self._dataset.images]
        self._net.train(training)
        return Scores.of(pooled([result.tally for result in results])), results

    def close(self) -> None:
        """Free the session."""
        self._segmenter.session.close()

    def _validated(self, image: Annotated) -> Validated:
        frame = image.frame if self._dataset.channels > 1 else image.frame[0]
        classes = self._segmenter.segment(frame, tta=self._tta).labels
        if not self._dataset.instances:
            names = len(self._dataset.class_names)
            return Validated(image, classes, evaluate_classes(classes, image.labels, names, image.ignored))
        found = instances(classes, self._segmenter.spec.separation_border)
        return Validated(image, found, evaluate_instances(found, image.labels, image.ignored, warping=False))
