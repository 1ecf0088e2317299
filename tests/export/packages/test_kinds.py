import subprocess
import sys

import pytest

from unetrt.cli import EXTRAS, _explained
from unetrt.export.packages import KINDS, write
from unetrt.runtime.errors import OptionError


def test_reading_the_table_imports_no_kind():
    code = "import sys, unetrt.export.packages; print([n for n in ('bioimageio', 'onnx', 'torch') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ("docker", {}, "'docker' is unknown: use one of bioimageio, triton$"),
        ("triton", {"license": "MIT"}, "a triton package has no license: it takes name, version,"),
        ("bioimageio", {"device": "gpu"}, "a bioimageio package has no device: it takes name, authors,"),
    ],
)
def test_what_there_is_not_names_what_there_is(tmp_path, kind, chosen, message):
    with pytest.raises(OptionError, match=message):
        write(kind, tmp_path / "model.onnx", tmp_path / "out", **chosen)


def test_a_missing_library_is_the_line_that_installs_it():
    assert _explained(ModuleNotFoundError(name="bioimageio.spec")) == (
        "this needs bioimageio: pip install 'unetrt[bioimageio]'",
        2,
    )
    assert {kind.name for kind in KINDS if kind.needs_frame} == {"bioimageio"} <= set(EXTRAS)
