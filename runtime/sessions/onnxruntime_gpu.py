"""ONNX Runtime's providers for GPUs."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's providers for GPUs.

    Attributes
    ----------
    name
        What ONNX Runtime calls it.
    """

    name: str

    def probe(self) -> str | None:
        """Return None where it is usable, else one sentence that says why not and what helps."""
        if find_spec("onnxruntime") is None:
            return "ONNX Runtime is not installed: pip install 'unetrt[gpu]'"
        import onnxruntime

        if self.name not in onnxruntime.get_available_providers():
            return f"ONNX Runtime has no {self.name} here: install onnxruntime-gpu instead of onnxruntime"
        return None


CUDA = Provider("CUDAExecutionProvider")
TENSORRT = Provider("TensorrtExecutionProvider")
TENSORRT_RTX = Provider("NvTensorRTRTXExecutionProvider")
