"""What is closed at the end of a `with`."""

from types import TracebackType
from typing import Self


class Closable:
    """Gives what has a `close` the form of a `with`."""

    def close(self) -> None:
        """Free everything; calling it again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
