"""Damaged models given to TensorRT: its parser runs in the user's process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import requirements
from tests.runtime.model_files.mutations import mutant
from tests.runtime.model_files.test_damaged_models import damageable

MUTANTS = 1000

# Builds every model of a folder; a crash ends it, and the model that did it is the last one named.
BUILDER = """
import sys
from pathlib import Path
from unetrt.runtime.engines.build import build
from unetrt.runtime.engines.engine_file import facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.machine import Machine
from unetrt.runtime.engines.engine_file import BuildOptions
from unetrt.runtime.errors import UnetrtError
from unetrt.runtime.model.onnx_file import read_spec
for model in sorted(Path(sys.argv[1]).glob("*.onnx")):
    print(model.name, end=" ", flush=True)
    try:
        facts = facts_of(model, read_spec(model), FLAVOURS[1], Machine(), BuildOptions())
        build(model, facts)
    except UnetrtError as error:
        print("refused" if chr(10) not in str(error) else "refused at length", flush=True)
    except BaseException as error:
        print(f"defect {error!r}", flush=True)
    else:
        print("built", flush=True)
"""


@pytest.mark.slow
def test_damaged_models_are_built_or_refused(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    (folder := tmp_path.resolve() / "models" / "in").mkdir(parents=True)
    (folder / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    originals = damageable()
    for number in range(MUTANTS):
        name = folder.parent / f"{number:04d}.onnx"
        name.write_bytes(mutant(originals[number % len(originals)], 10_000 + number))
    command = [sys.executable, "-c", BUILDER, str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    outcomes = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.split()[0].endswith(".onnx")]
    assert (done.returncode, len(outcomes)) == (0, MUTANTS), done.stdout[-200:]
    assert set(outcomes) == {"built", "refused"}
    assert outcomes.count("built") > MUTANTS / 10
