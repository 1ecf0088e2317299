"""What an engine's input and output look like."""

from typing import Any, NamedTuple

import numpy as np

from unetrt.runtime.spec import INPUT, OUTPUT, ModelSpec


class Binding(NamedTuple):
    """One end of an engine.

    Attributes
    ----------
    shape
        Lengths of its axes.
    dtype
        The numpy type of its elements.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]


def bindings(spec: ModelSpec) -> dict[str, Binding]:
    """Return an engine's input and output by name.

    They are those of the model file, but for uint16, which TensorRT does not have: there the input is the bytes of the
    same memory, (batch, C, h, w, 2) uint8, the lower byte first.
    """
    ends = {name: _of(array) for name, array in ((INPUT, spec.new_input()), (OUTPUT, spec.new_output()))}
    if spec.input_dtype == "uint16":
        ends[INPUT] = Binding((*ends[INPUT].shape, 2), np.uint8)
    return ends


def _of(array: Any) -> Binding:
    return Binding(array.shape, array.dtype.type)
