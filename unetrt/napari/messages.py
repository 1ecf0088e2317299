"""How an error reaches the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from unetrt.napari.segmentation import explained
from unetrt.runtime.errors import UnetrtError


def tell(error: BaseException) -> None:
    """Show an error as a notification of napari, in one line."""
    from napari.utils.notifications import show_error

    show_error(explained(error))


@contextmanager
def told() -> Iterator[None]:
    """Tell of an error of ours that is raised within, and go on."""
    try:
        yield
    except UnetrtError as error:
        tell(error)
