"""Validation by tiled inference, through the same geometry, normalisation and instances as in use."""

from dataclasses import dataclass

import numpy as np

from unetrt.runtime.instance_labels import instances
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.planner import GIB, Budget, best_tile
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer.dataset import Annotated, Dataset
from unetrt.trainer.metrics import class_iou, foreground_iou, seg
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.unet import UNet

# Training holds its own activations; validation stays well below them.
MEMORY = 2 * GIB


@dataclass(frozen=True)
class Scores:
    """How good a network is on validation images; each number is the mean over the images, 0 to 1.

    Attributes
    ----------
    iou
        Intersection over union of the foreground; for class maps the mean over the classes.
    seg
        The Cell Tracking Challenge's SEG, images without objects left out; None for class maps.
    """

    iou: float
    seg: float | None

    @property
    def decisive(self) -> float:
        """The score by which the best network is chosen: SEG where there is one."""
        return self.iou if self.seg is None else self.seg

    def __str__(self) -> str:
        return f"IoU {self.iou:.3f}" + ("" if self.seg is None else f"  SEG {self.seg:.3f}")


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
    """

    def __init__(self, dataset: Dataset, net: UNet, normalisation: Normalisation, separation_border: int) -> None:
        self._dataset, self._net = dataset, net
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

    def __call__(self) -> Scores:
        """Return the scores of the network as it is now."""
        training = self._net.training
        self._net.eval()
        scores = [self._score(image) for image in self._dataset.images]
        self._net.train(training)
        iou = float(np.mean([score for score, _ in scores]))
        segs = [score for _, score in scores if score is not None]
        return Scores(iou, float(np.mean(segs)) if segs else None)

    def close(self) -> None:
        """Free the session."""
        self._segmenter.session.close()

    def _score(self, image: Annotated) -> tuple[float, float | None]:
        frame = image.frame if self._dataset.channels > 1 else image.frame[0]
        classes = self._segmenter.segment(frame).labels
        if not self._dataset.instances:
            return class_iou(classes, image.labels), None
        found = instances(classes, self._segmenter.spec.separation_border)
        return foreground_iou(classes, image.labels), seg(found, image.labels)
