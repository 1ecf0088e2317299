"""MONAI's sliding window with an overlap of 0.5, around the padded twin of the network.

The twin has the same weights, and convolutions that keep the size by padding with zeros, as MONAI's networks have. A
window's scores reach up to its border, where they are wrong; overlap and averaging hide that.
"""

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import nn

from unetrt.benchmarks.contenders import About, BenchJob, Contender, Ready
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.errors import ParityError
from unetrt.trainer.checkpoint import load
from unetrt.trainer.unet import UNet

# The side of a window in pixels, on the pooling lattice at any depth up to 6; one window a pass. On 2 cores that took
# 12 to 13 s for 2048 x 2048, base 16; 2 or 4 windows a pass 18 to 19 s, windows of 256 px 12 to 14 s.
WINDOW = 512
OVERLAP = 0.5
# The twin pools on another lattice: its window begins this many pixels before the network's tile.
SHIFT = 2
# Largest difference between the scores of the twin and of the network, in units of their standard deviation.
CLOSE = 1e-2


def ready(job: BenchJob, _: Contender) -> Ready:
    """Load the twin, and compare it with the network where borders do not reach."""
    checkpoint, frame = load(job.checkpoint), job.read_frame()
    planes = frame if frame.ndim == 3 else frame[None]
    net, twin = (checkpoint.network().to(job.torch_device) for _ in range(2))
    twin = padded(twin)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        require_twin(net, twin)

    @torch.inference_mode()
    def segment() -> NDArray[np.uint8]:
        normalised = torch.from_numpy(checkpoint.normalisation(planes)[None]).to(job.torch_device)
        scores = sliding_window_inference(normalised, (WINDOW, WINDOW), 1, twin, overlap=OVERLAP)
        assert isinstance(scores, torch.Tensor)
        return scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    return Ready(about(checkpoint.shape, (planes.shape[-2], planes.shape[-1])), {SEGMENT: segment})


def about(shape: UNetShape, frame: tuple[int, int]) -> About:
    """Return its description for a frame (H, W)."""
    stride = int(WINDOW * (1 - OVERLAP))
    rows, columns = (1 + max(0, -(-(side - WINDOW) // stride)) for side in frame)
    flops = round(2 * rows * columns * shape.macs_per_pixel() * WINDOW**2)
    checked = "the padded twin against the network, where borders do not reach"
    return About((WINDOW, WINDOW), rows * columns, flops, None, checked)


def padded(net: UNet) -> UNet:
    """Return the network with zero padding in its 3x3 convolutions; changed in place."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding = (1, 1)
    return net.eval()


@torch.inference_mode()
def require_twin(net: UNet, twin: UNet) -> None:
    """Raise ParityError unless both give the same scores for random pixels where the twin's borders do not reach."""
    geometry = net.shape.geometry
    side = next(side for side in range(WINDOW - SHIFT, 0, -1) if geometry.is_legal(side))
    device = next(net.parameters()).device
    window = torch.rand(1, net.shape.channels, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0)).to(device)
    expected = net.eval()(window[..., SHIFT : SHIFT + side, SHIFT : SHIFT + side])
    first, last = SHIFT + geometry.halo, SHIFT + side - geometry.halo
    off = (twin(window)[..., first:last, first:last] - expected).abs().max()
    if off > CLOSE * expected.std():
        raise ParityError(f"the padded twin's scores differ from the network's by up to {off:.2g}")
