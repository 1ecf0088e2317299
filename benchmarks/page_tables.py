"""Tables and lists of the page."""

from collections.abc import Iterable, Mapping, Sequence

from unetrt.benchmarks.markup import Markup, element

# Letters up to which a cell is not broken into lines.
SHORT = 20


def pairs(told: Iterable[tuple[str, str]]) -> Markup:
    """Return names and what belongs to them."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in told))


def table(rows: Sequence[Mapping[str, str]], emphasised: Sequence[bool]) -> Markup:
    """Return a table without the columns that are empty throughout; each cell knows its heading, for narrow screens."""
    headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    head = element(
        "tr", *(element("th", heading, scope="col", role="columnheader") for heading in headings), role="row"
    )
    body = [
        element(
            "tr", *(_cell(heading, row[heading]) for heading in headings), role="row", class_="ours" if ours else None
        )
        for row, ours in zip(rows, emphasised, strict=True)
    ]
    parts = (element("thead", head, role="rowgroup"), element("tbody", *body, role="rowgroup"))
    return element("table", *parts, role="table")


def _cell(heading: str, text: str) -> Markup:
    short = "short" if len(text) <= SHORT else None
    return element("td", text, role="cell", class_=short, data_heading=heading)
