"""Losses and scores for TensorBoard, for who has it running anyway."""

from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard.writer import SummaryWriter

from unetrt.trainer.run import Progress


class TensorBoard:
    """Writes what a training reports; use it in a `with`.

    Parameters
    ----------
    folder
        Of the run; the events go to `tensorboard` in it.
    step
        Steps done before: what an interrupted run wrote of later ones is hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def __call__(self, progress: Progress) -> None:
        """Write one step."""
        self._writer.add_scalar("loss", progress.loss, progress.step)
        self._writer.add_scalar("learning rate", progress.rate, progress.step)
        if scores := progress.scores:
            for name, value in vars(scores).items():
                if value is not None:
                    self._writer.add_scalar(f"validation/{name}", value, progress.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
