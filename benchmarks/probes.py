"""What contenders need besides unetrt. Each probe answers with None, or one sentence that says why not."""

import os
import shutil
from importlib.util import find_spec

# torch.compile calls one of them to make code for a CPU.
COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")


def torch_gpu() -> str | None:
    """Tell whether torch computes on a GPU."""
    import torch

    if torch.cuda.is_available():
        return None
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"torch {torch.__version__}, built with {build}, finds no GPU"


def bfloat16() -> str | None:
    """Tell whether OpenVINO computes in bfloat16 on this processor, and not in float32 in its place."""
    from unetrt.runtime.sessions.openvino import has_bfloat16

    return None if has_bfloat16() else "this processor does not multiply bfloat16, which would be computed in float32"


def compiler() -> str | None:
    """Tell whether torch.compile finds a C++ compiler."""
    return None if any(map(shutil.which, COMPILERS)) else "torch.compile needs a C++ compiler: install g++ or clang"


def monai() -> str | None:
    """Tell whether MONAI is installed."""
    return None if find_spec("monai") else "MONAI is not installed: pip install 'unetrt[bench]'"
