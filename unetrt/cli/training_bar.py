"""A training with a bar, at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetrt.trainer.budget import Budget
    from unetrt.trainer.run import Progress
    from unetrt.trainer.training import Training


def run_with_bar(training: "Training", budget: "Budget", *, tensorboard: bool = False, quiet: bool = False) -> Path:
    """Run a training with a progress bar on standard error; return the best checkpoint.

    Ctrl-C or SIGTERM stop it after the step in hand, and everything is saved.
    """
    from unetrt.trainer.stopping import stop_request

    with ExitStack() as stack:
        reporters = [] if quiet else [stack.enter_context(_bar())]
        if tensorboard and not quiet:
            from unetrt.trainer.tensorboard import TensorBoard

            reporters.append(stack.enter_context(TensorBoard(training.folder, training.steps)))
        request = stack.enter_context(stop_request())

        def report(progress: "Progress") -> None:
            for reporter in reporters:
                reporter(progress)

        return training.run(budget, report, lambda: request.asked)


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("training", total=1.0)

    def report(progress: Any) -> None:
        bar.start()  # with the first step: an error before it is one line, not a line below a bar
        bar.update(task, completed=progress.spent, description=f"step {progress.step}  loss {progress.loss:.3f}")
        if scores := progress.scores:
            bar.console.print(f"step {progress.step:6d}  {scores}")

    try:
        yield report
    finally:
        bar.stop()
