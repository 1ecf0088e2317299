"""Torch behind the runtime's session protocol, and torch's exceptions as errors of unetrt.

Validation and the export's parity gate run a network through the same geometry, normalisation and stitching as every
other engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from unetrt.runtime.errors import InferenceError, OutOfMemoryError, is_out_of_memory, one_line
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.cpu import Array, WorkerSession


class TorchSession(WorkerSession):
    """Eager torch as an inference engine.

    Parameters
    ----------
    net
        Maps (N, C, h, w) to logits (N, classes, h', w'), on its own device. Changes of its weights take effect with the
        next pass.
    spec
        Spec of the network, with head `logits`.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        self._net = net
        self._device = next(net.parameters()).device
        super().__init__(spec, f"eager torch on {self._device}")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the network; raises InferenceError or OutOfMemoryError."""
        with torch.inference_mode(), torch_errors("running the network", "use a smaller tile or a smaller batch"):
            logits = self._net(torch.from_numpy(frames).to(self._device))
            torch.from_numpy(scores).copy_(logits)


@contextmanager
def torch_errors(action: str, advice: str) -> Iterator[None]:
    """Raise torch's exceptions as InferenceError, and those of a full memory as OutOfMemoryError.

    Parameters
    ----------
    action
        Beginning of the message: what runs inside.
    advice
        End of the message where memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"{action}: out of memory; {advice}") from error
        raise InferenceError(f"{action}: torch failed: {one_line(error, first=True)}") from error
