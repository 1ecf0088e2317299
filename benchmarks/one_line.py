"""Commands of the benchmarks, whose errors are one line, as those of `unetrt` are."""

from typing import Any

import click

from unetrt.runtime.errors import UnetrtError


class OneLine(click.Command):
    """A command that says in one line what went wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; our own errors become click's, with their exit status."""
        try:
            return super().invoke(ctx)
        except UnetrtError as error:
            raise _Told(error) from error


class _Told(click.ClickException):
    """One of our errors, as click shows it."""

    def __init__(self, error: UnetrtError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = error.exit_code  # type: ignore[misc]
