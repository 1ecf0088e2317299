"""The runtime goes into other people's processes: what it imports is part of its contract."""

import subprocess
import sys

BLOCK = """
import sys

class Unimportable:
    names = {"torch", "onnx", "onnxscript", "matplotlib", "pymmcore", "pymmcore_plus", "safetensors", "edt"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is made unimportable")

sys.meta_path.insert(0, Unimportable())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_runtime_imports_without_torch():
    names = run(
        BLOCK
        + "import pkgutil, importlib, unetrt.runtime\n"
        + "for module in pkgutil.walk_packages(unetrt.runtime.__path__, 'unetrt.runtime.'):\n"
        + "    importlib.import_module(module.name); print(module.name)\n"
    ).split()
    assert "unetrt.runtime.segment.segmenter" in names
    assert "unetrt.runtime.sessions.onnxruntime" in names


def test_a_frame_is_segmented_without_torch(tiny_model):
    out = run(
        BLOCK
        + "import numpy as np; from unetrt import Segmenter\n"
        + f"with Segmenter({str(tiny_model)!r}) as s: print(s.segment(np.zeros((70, 90), np.uint16)).labels.shape)\n"
    )
    assert out.strip() == "(70, 90)"


WITHOUT_DISTRIBUTED = BLOCK.replace('"torch"', '"torch", "dask", "distributed", "fsspec", "zarr"')


def test_an_image_is_segmented_without_the_packages_of_blocks(tiny_model, tmp_path):
    """Public names are all there; the one that needs the packages says which, and what installs them."""
    out = run(
        WITHOUT_DISTRIBUTED
        + "import importlib.util, numpy as np; from unetrt.runtime import *; from unetrt.runtime import UnetrtError\n"
        + f"with Segmenter({str(tiny_model)!r}) as segmenter:\n"
        + "    print(segmenter.segment(np.zeros((70, 90), np.uint16)).labels.shape)\n"
        + f"    try: segment_large(segmenter, np.zeros((70, 90), np.uint16), {str(tmp_path / 'out')!r})\n"
        + "    except UnetrtError as error: print(error)\n"
        + "print([name for name in ('dask', 'fsspec', 'zarr', 'torch') if name in sys.modules])\n"
    )
    needed = "segment_large needs dask, fsspec, zarr: pip install 'unetrt[distributed]'"
    assert out.splitlines() == ["(70, 90)", needed, "[]"]
    assert not (tmp_path / "out").exists()


def test_help_imports_no_engine_and_no_numpy():
    heavy = ("torch", "onnx", "onnxruntime", "tensorrt", "numpy", "rich", "scipy")
    out = run(
        "import sys; from unetrt.__main__ import main\n"
        f"assert main(['--help']) == 0; print([n for n in {heavy} if n in sys.modules])\n"
    )
    assert out.strip().endswith("[]")
    assert "Segment images with a model." in out


def test_importing_unetrt_imports_nothing_heavy():
    assert run("import sys, unetrt; print('numpy' in sys.modules, unetrt.__version__ > '')").strip() == "False True"
