"""HTML and SVG, in which whatever is not an element made here is escaped."""

from html import escape


class Markup(str):
    """Text that is HTML already: what `element` made."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str | float | None) -> Markup:
    """Return an element.

    Parameters
    ----------
    name
        Of the element.
    content
        Other elements, taken over as they are, and text, which is escaped.
    attributes
        `class_` is `class`, `stroke_width` is `stroke-width`; those that are None are left out.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{told}>{joined(*content)}</{name}>")


def joined(*content: str) -> Markup:
    """Return elements and text one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in content))
