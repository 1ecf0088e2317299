"""Commands of the benchmarks, whose errors are one line, as those of `unetrt` are."""

from typing import Any

import click

from unetrt._exit_codes import STOPPED, exit_code
from unetrt.runtime.errors import UnetrtError


class OneLine(click.Command):
    """A command that says in one line what went wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; our own errors become click's, with their exit status."""
        try:
            return super().invoke(ctx)
        except UnetrtError as error:
            raise _OneLineError(" ".join(str(error).split()), exit_code(error)) from error
        except KeyboardInterrupt as error:
            raise _OneLineError("stopped by the user", STOPPED) from error


class _OneLineError(click.ClickException):
    """An error as click shows it."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.exit_code = status  # type: ignore[misc]
