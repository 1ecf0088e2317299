"""JSON records: typed dataclasses in JSON files, validated by msgspec when they are read.

A record is a frozen dataclass. Its annotations are the schema: `Literal` for choices, `Annotated[int, Meta(ge=0)]`
for ranges, nested dataclasses for objects. Rules that span fields belong in `__post_init__`, which raises ValueError.
`read_regular` reads a file of any origin: a regular one, of limited size.

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
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EFBIG, EINVAL, EPERM
from io import BufferedReader
from pathlib import Path
from stat import S_ISLNK, S_ISREG
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


@contextmanager
def open_regular(path: Path, limit: int | None = None, own: bool = False) -> Iterator[BufferedReader]:
    """Open a regular file for reading, never a pipe or a device.

    Parameters
    ----------
    path
        The file.
    limit
        Maximum size in bytes.
    own
        Whether the file must not be a link, and must belong to this user.

    Raises
    ------
    OSError
        The file cannot be opened, is not one of these, or is too large; `strerror` says which.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if own else 0)
    _require_regular(path, path.stat(follow_symlinks=not own), limit, own)
    with open(path, "rb", opener=lambda name, usual: os.open(name, usual | flags)) as file:
        _require_regular(path, os.fstat(file.fileno()), limit, own)
        yield file


def read_regular(path: Path, limit: int, own: bool = False) -> bytes:
    """Return the content of a regular file; see `open_regular`."""
    with open_regular(path, limit, own) as file:
        return file.read(limit)


def _require_regular(path: Path, about: os.stat_result, limit: int | None, own: bool) -> None:
    if S_ISLNK(about.st_mode):
        raise OSError(EINVAL, "it is a link", str(path))
    if not S_ISREG(about.st_mode):
        raise OSError(EINVAL, "it is not a regular file", str(path))
    if limit is not None and about.st_size > limit:
        raise OSError(EFBIG, f"it has {about.st_size} bytes, and at most {limit} are read", str(path))
    if own and hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        raise OSError(EPERM, f"it belongs to user {about.st_uid}", str(path))
