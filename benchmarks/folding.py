"""A table for a terminal of any width: where it does not fit, each row becomes a title and a line below it."""

from collections.abc import Iterable

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Cells below which a column of titles is hard to read.
NARROWEST = 20


class FoldingTable:
    """Titles on the left, figures on the right; figures are never broken, and nothing is cut.

    Parameters
    ----------
    title
        Heading of the titles.
    headings
        Of the figures; may have several lines.
    """

    def __init__(self, title: str, *headings: str) -> None:
        self.title, self.headings = title, headings
        self._rows: list[tuple[str, tuple[str, ...], str]] = []

    def add(self, title: str, figures: Iterable[str], style: str = "") -> None:
        """Add a row; `title` is plain text, whatever it holds."""
        self._rows.append((title, tuple(figures), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table()
        if Measurement.get(console, options.update(width=1000), table).minimum <= options.max_width:
            yield table
            return
        yield Text(self.title, "bold")
        for title, figures, style in self._rows:
            yield Text(title, style)
            yield Padding(Text(self._line(figures)), (0, 0, 0, 2))

    def _table(self) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
        drawn.add_column(self.title, overflow="fold", min_width=NARROWEST)
        for column, heading in enumerate(self.headings):
            cells = [row[1][column] for row in self._rows]
            # Without its least width a column may be broken between two words.
            drawn.add_column(heading, justify="right", min_width=max(map(cell_len, (*heading.split("\n"), *cells))))
        for title, figures, style in self._rows:
            drawn.add_row(Text(title), *map(Text, figures), style=style)
        return drawn

    def _line(self, figures: tuple[str, ...]) -> str:
        names = (heading.replace("\n", " ") for heading in self.headings)
        return ", ".join(f"{name} {figure}" for name, figure in zip(names, figures, strict=True) if figure)
