"""What a widget has open beside itself: the model, what runs in the background and what is live."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from unetrt.napari.background import Background
from unetrt.napari.messages import tell, told
from unetrt.napari.segmentation import Call, load
from unetrt.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from unetrt.napari.live_labels import LiveLabels


class Work(QObject):
    """The model, the background thread and the live labels of a widget. Errors become notifications.

    It has no parent: `close` can follow the widget's end.

    Attributes
    ----------
    changed
        (str): what runs in the background; empty, where nothing does any more.
    loaded
        (Segmenter): the model that is used from now on.
    background
        What runs.
    segmenter, path
        The model that is loaded, and its file.
    live
        What is live; None where nothing is.
    """

    changed = Signal(str)
    loaded = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.background = Background()
        self.segmenter: Segmenter | None = None
        self.path = ""
        self.live: LiveLabels | None = None
        self._then: Callable[[Any], None] | None = None
        self.background.succeeded.connect(self._succeeded)
        self.background.failed.connect(self._failed)

    def run(self, text: str, call: Call, then: Callable[[Any], None]) -> None:
        """Run a call in the background, and give what it returns to `then`."""
        self._then = then
        self.background.start(call)
        self.changed.emit(text)

    def cancel(self) -> None:
        """Forget what runs in the background."""
        if self.background.busy:
            self.background.cancel()
            self.changed.emit("")

    def with_model(self, path: str, then: Callable[[Segmenter], None]) -> None:
        """Give a model to `then`, once it is loaded; another one is freed first."""
        if self.segmenter is not None and self.path == path:
            then(self.segmenter)
            return
        self.forget_model()
        self.run("loading the model …", lambda _: load(path), lambda model: self._take(path, model, then))

    def forget_model(self) -> None:
        """Free the model; what still uses it ends at its next tile."""
        self.end_live()
        if self.segmenter is not None:
            self.segmenter.close()
        self.segmenter, self.path = None, ""

    def end_live(self) -> None:
        """End what is live, without waiting for its thread."""
        if self.live is not None:
            self.live.close()
        self.live = None

    def close(self, *_: object) -> None:
        """End everything, without waiting for it; idempotent."""
        self.background.cancel()
        self.forget_model()

    def _take(self, path: str, model: Segmenter, then: Callable[[Segmenter], None]) -> None:
        self.path, self.segmenter = path, model
        self.loaded.emit(model)
        then(model)

    def _succeeded(self, result: Any) -> None:
        then, self._then = self._then, None
        self.changed.emit("")
        if then is not None:
            with told():
                then(result)

    def _failed(self, error: BaseException) -> None:
        self._then = None
        self.changed.emit("")
        tell(error)
