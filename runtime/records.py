"""JSON records: typed dataclasses in JSON files, validated by msgspec when they are read.

A record is a frozen dataclass. Its annotations are the schema: `Literal` for choices, `Annotated[int, Meta(ge=0)]`
for ranges, nested dataclasses for objects. Rules that span fields belong in `__post_init__`, which raises ValueError.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Point:
...     x: int
...     y: int = 0
>>> from_json('{"x": 3}', Point, "point.json")
Point(x=3, y=0)
>>> from_json('{"x": "3"}', Point, "point.json")
Traceback (most recent call last):
...
unetrt.runtime.errors.ModelFileError: point.json is invalid: x: expected `int`, got `str`
"""

import dataclasses
import json
from contextlib import suppress
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from unetrt.runtime.errors import ModelFileError, UnetrtError

Kind = TypeVar("Kind")


def parse(text: str | bytes, name: str, error: type[UnetrtError] = ModelFileError) -> dict[str, Any]:
    """Return the JSON object in a text.

    Parameters
    ----------
    text
        JSON, in UTF-8 where it is bytes.
    name
        Subject of the error message: a file or a part of one.
    error
        Exception to raise.

    Raises
    ------
    UnetrtError
        As `error`: the text is not JSON, or not an object.
    """
    try:
        # Not msgspec's decoder, which refuses the NaN that json.dumps writes.
        return msgspec.convert(json.loads(text), dict[str, Any])
    except (TypeError, ValueError, RecursionError) as cause:
        raise error(f"{name} is not a JSON object: {_lower(cause)}") from cause


def validated(
    stored: Any, kind: type[Kind], name: str, error: type[UnetrtError] = ModelFileError, *, unknown: bool = False
) -> Kind:
    """Return a record made of parsed JSON.

    Parameters
    ----------
    stored
        What `parse` returned, or a part of it.
    kind
        A dataclass, or another type that msgspec converts to.
    name
        Subject of the error message.
    error
        Exception to raise.
    unknown
        Whether to ignore keys that a dataclass does not have.

    Raises
    ------
    UnetrtError
        As `error`: a value has the wrong type or is out of range; the message names its place.
    """
    if not unknown and dataclasses.is_dataclass(kind) and isinstance(stored, dict):
        extra = sorted(set(stored) - {field.name for field in dataclasses.fields(kind)})
        if extra:
            raise error(f"{name} is invalid: unknown key {extra[0]!r:.60}")
    try:
        return msgspec.convert(stored, kind)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as cause:  # Unicode: a lone surrogate
        raise error(f"{name} is invalid: {_located(cause, kind)}") from cause


def from_json(text: str | bytes, kind: type[Kind], name: str, error: type[UnetrtError] = ModelFileError) -> Kind:
    """Return the record that `to_json` wrote; raises as `parse` and `validated` do."""
    return validated(parse(text, name, error), kind, name, error)


def to_json(record: Any, indent: int = 2) -> str:
    """Return a record (dataclasses, dicts, lists, numbers, text) as JSON; NaN becomes null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=indent).decode()


def _located(cause: Exception, kind: Any) -> str:
    """Return msgspec's message with the place in front: "tile[0]: expected `int`, got `str`"."""
    message, _, place = _lower(cause).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if choices := _choices(kind, place):
        message += f", use {', '.join(map(str, choices))}"
    return f"{place}: {message}" if place else message


def _choices(kind: Any, place: str) -> tuple[Any, ...]:
    """Return the values of a Literal at a place in a dataclass, such as `normalisation.mode`; else nothing."""
    with suppress(KeyError, TypeError):
        for name in place.split("."):
            kind = get_type_hints(kind)[name]
        return get_args(kind) if get_origin(kind) is Literal else ()
    return ()


def _lower(cause: Exception) -> str:
    text = str(cause)
    return text[:1].lower() + text[1:] if text[:1].isupper() and not text[1:2].isupper() else text
