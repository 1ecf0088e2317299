"""Context managers that call `close`."""

from types import TracebackType
from typing import Self


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
