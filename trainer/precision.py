"""In which number format a device computes best; weights, loss and updates stay float32."""

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler


class Precision:
    """Float32, bfloat16, or float16 with scaled gradients: what the device has in hardware.

    Parameters
    ----------
    device
        Where the network computes.
    mixed
        Whether 16 bits are wanted at all.
    """

    def __init__(self, device: torch.device, mixed: bool) -> None:
        self._device = device
        self.dtype = _best(device) if mixed else torch.float32
        # float16 alone has so small an exponent that gradients vanish.
        self._scaler = GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs."""
        return torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32)

    def update(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Work out the gradients of a loss and take one step."""
        optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(optimiser)
        self._scaler.update()

    def state(self) -> Tensor:
        """Return by how much gradients are scaled and since how many steps, (2,) float64."""
        scaler = self._scaler.state_dict()
        return torch.tensor([scaler.get("scale", 1.0), scaler.get("_growth_tracker", 0)], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Continue from a state."""
        scale, tracker = state.tolist()
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware; elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported())


def _best(device: torch.device) -> torch.dtype:
    if has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32
