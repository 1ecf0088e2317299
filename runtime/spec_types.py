"""Types and ranges of what a spec holds as JSON: a file may come from anywhere, and JSON can say anything."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from unetrt.runtime.errors import ModelFileError

# Above what any model has, and below what overflows an engine's sizes: pixels, channels, tiles.
MAX_COUNT = 1 << 20
# Of the deepest U-Net that fits a tile of MAX_COUNT pixels: its halo is 6 * 2^depth - 4.
MAX_DEPTH = 16
# float32's own limit: what is larger is infinite in the network.
MAX_FLOAT = 3.4028234e38
# Elements of an array that ONNX Runtime and TensorRT can count in 32 bits.
MAX_ELEMENTS = (1 << 31) - 1
# Characters of a wrong value that an error shows.
SHOWN = 60


class Rule(NamedTuple):
    """What a value must be: a test and, for the error, words."""

    holds: Callable[[Any], bool]
    words: str


def is_count(value: Any) -> bool:
    """Tell whether a value is an integer, no bool, from 0 to MAX_COUNT."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_text(value: Any) -> bool:
    """Tell whether a value is text that fits on a line of a terminal: no control characters, no half of a pair."""
    return isinstance(value, str) and value.isprintable()


def is_real(value: Any) -> bool:
    """Tell whether a value is a number, no bool, that float32 can hold: finite."""
    return type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Tell whether a value is a list whose elements all pass a test."""
    return isinstance(value, list) and all(holds(element) for element in value)


def is_network(value: Any) -> bool:
    """Tell whether a value is empty or holds depth and base of a U-Net."""
    if not isinstance(value, dict) or not all(is_count(number) for number in value.values()):
        return False
    return not value or (1 <= value.get("depth", 0) <= MAX_DEPTH and value.get("base", 0) >= 1)


COUNT = Rule(is_count, f"a whole number from 0 to {MAX_COUNT}")
TEXT = Rule(is_text, "text on one line")
REAL = Rule(is_real, "a finite number")
REALS = Rule(lambda value: is_list(value, is_real), "a list of finite numbers")
SPEC: Mapping[str, Rule] = {
    "tile": Rule(lambda value: is_list(value, is_count) and len(value) == 2, "height and width in pixels"),
    "halo": COUNT,
    "grid": Rule(lambda value: is_count(value) and value > 0, f"a whole number from 1 to {MAX_COUNT}"),
    "channels": COUNT,
    "classes": Rule(lambda value: is_list(value, is_text), "a list of names"),
    "normalisation": Rule(lambda value: isinstance(value, dict), "a group of settings"),
    "batch": COUNT,
    **dict.fromkeys(("head", "precision", "input_dtype", "border", "annotation", "weights_sha256", "written_by"), TEXT),
    "separation_border": COUNT,
    "network": Rule(is_network, f"empty, or depth (1 to {MAX_DEPTH}) and base of a U-Net"),
    "training": Rule(lambda value: isinstance(value, dict), "a group of facts"),
}
NORMALISATION: Mapping[str, Rule] = {"mode": TEXT, "low": REAL, "high": REAL, "offset": REALS, "scale": REALS}


def require_types(stored: Mapping[str, Any]) -> None:
    """Raise ModelFileError where a field of a spec, as JSON gave it, has a wrong type or is out of all range.

    Fields that are missing or unknown are not its business.
    """
    require(stored, SPEC, "")
    normalisation = stored.get("normalisation", {})
    require(normalisation, NORMALISATION, "normalisation's ")
    tile, channels, classes = stored.get("tile", [1, 1]), stored.get("channels", 1), stored.get("classes", [])
    elements = math.prod((stored.get("batch", 1), max(channels, len(classes)), *tile))
    if elements > MAX_ELEMENTS:
        raise ModelFileError(f"tile, batch, channels and classes make {elements} values: {MAX_ELEMENTS} at most")
    constants = [len(normalisation[name]) for name in ("offset", "scale") if name in normalisation]
    if any(count != channels for count in constants):
        raise ModelFileError(f"normalisation has {constants} constants: offset and scale are {channels} each")


def require(stored: Mapping[str, Any], rules: Mapping[str, Rule], whose: str) -> None:
    """Raise ModelFileError where a field, as JSON gave it, breaks its rule; `whose` is put before its name."""
    for name, rule in rules.items():
        if name in stored and not rule.holds(stored[name]):
            given = repr(stored[name])
            raise ModelFileError(f"{whose}{name} is {given[:SHOWN]}: it must be {rule.words}")
