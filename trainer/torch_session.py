"""A session around a network in torch, so that validation runs through the same geometry as everything else."""

import torch
from torch import nn

from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions.cpu import Array, WorkerSession
from unetrt.trainer.failures import translated


class TorchSession(WorkerSession):
    """Eager torch as an inference engine, for validation and as the reference of the parity gate.

    Parameters
    ----------
    net
        Maps (N, C, h, w) to logits (N, classes, h', w'); used as it is at each pass, on the device where it lies.
    spec
        What to tell the segmenter; its head is `logits`.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        self._net = net
        self._device = next(net.parameters()).device
        super().__init__(spec, f"eager torch on {self._device}")

    def compute(self, frames: Array, scores: Array) -> None:
        """Run the network; raises InferenceError or OutOfMemoryError."""
        with torch.inference_mode(), translated("running the network", "use a smaller tile or a smaller batch"):
            logits = self._net(torch.from_numpy(frames).to(self._device))
            torch.from_numpy(scores).copy_(logits)
