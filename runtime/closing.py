"""Context managers that call `close`."""

from types import TracebackType
from typing import NoReturn, Self

from unetrt.runtime.errors import OptionError


class Closable:
    """Base class whose `with` statement calls `close` at the end."""

    def close(self) -> None:
        """Free all resources; idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProcessBound(Closable):
    """Base class of what holds an inference engine or threads, and so cannot be sent to another process."""

    def __reduce__(self) -> NoReturn:
        raise OptionError(
            f"a {type(self).__name__} holds an engine and cannot be pickled or copied: send the path of the model, and "
            "open it in the other process (started with multiprocessing's method spawn)"
        )
