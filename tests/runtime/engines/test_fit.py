import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.engines.machines import ADA, AMPERE, FACTS, NONE, RTX, SPEC, TURING, WINDOWS
from unetrt.cli.build import command
from unetrt.runtime.engines.engine_file import Sidecar
from unetrt.runtime.engines.fit import first_misfit, rebuild_command, require_fit
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.errors import EngineError

AMPERE_PLUS = replace(FACTS, options=BuildOptions(hardware_compatible="ampere-plus"))
NEWER = replace(FACTS, options=BuildOptions(version_compatible=True))
FOR_TURING = replace(RTX, options=BuildOptions(capabilities=("7.5",)))


@pytest.mark.parametrize(
    ("facts", "machine", "version"),
    [
        (FACTS, ADA, "11.4.0.106"),
        (FACTS, replace(ADA, gpu="NVIDIA L40", driver="590.1"), "11.4.0.106"),
        (AMPERE_PLUS, AMPERE, "11.4.0.106"),
        (AMPERE_PLUS, replace(ADA, capability="12.0"), "11.4.0.106"),
        (NEWER, ADA, "11.10.0.1"),
        (RTX, ADA, "1.7.1.116"),
        (RTX, WINDOWS, "1.7.1.116"),
        (FOR_TURING, TURING, "1.7.1.116"),
    ],
)
def test_what_fits(facts, machine, version):
    assert first_misfit(facts, machine, version) is None


@pytest.mark.parametrize(
    ("facts", "machine", "version", "message"),
    [
        (FACTS, AMPERE, "11.4.0.106", "built with compute capability 8.9, here 8.6"),
        (FACTS, ADA, "11.5.0.1", "built with TensorRT version 11.4.0.106, here 11.5.0.1"),
        (FACTS, WINDOWS, "11.4.0.106", "built with system Linux x86_64, here Windows AMD64"),
        (AMPERE_PLUS, TURING, "11.4.0.106", "built with compute capability 8.9, here 7.5"),
        (NEWER, ADA, "11.3.9", "version 11.4.0.106, here 11.3.9"),
        (NEWER, ADA, "12.0.0", "version 11.4.0.106, here 12.0.0"),
        (RTX, TURING, "1.7.1.116", "built with compute capability 8.0 and newer, here 7.5"),
        (FOR_TURING, ADA, "1.7.1.116", "built with compute capability 7.5, here 8.9"),
        (RTX, ADA, "1.6.0", "built with TensorRT for RTX version 1.7.1.116, here 1.6.0"),
    ],
)
def test_what_does_not_fit_is_named_with_both_sides_and_the_command_that_rebuilds(facts, machine, version, message):
    sidecar = Sidecar(facts, SPEC, "cells/model.onnx", "", 0)
    with pytest.raises(
        EngineError, match=f"^model.engine does not fit this machine: .*{message}; rebuild it with"
    ) as caught:
        require_fit(Path("model.engine"), sidecar, machine, version)
    assert f"`{rebuild_command(Path('model.engine'), sidecar)}`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("facts", "gpu"), [(FACTS, "NVIDIA RTX 4090"), (RTX, "of compute capability 8.0 and newer")])
def test_where_there_is_no_gpu_nothing_is_to_be_rebuilt(facts, gpu):
    sidecar = Sidecar(facts, SPEC, "cells/model.onnx", "", 0)
    with pytest.raises(EngineError, match=f"^model.engine runs on a GPU, {gpu}, and (there is none here|none is seen)"):
        require_fit(Path("model.engine"), sidecar, NONE, facts.version)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(2**31, 5, True, True, "same-capability"),
        BuildOptions(capabilities=("8.6", "12.0")),
    ],
)
def test_the_command_that_rebuilds_asks_for_the_same(options):
    sidecar = Sidecar(replace(FACTS, options=options), SPEC, "my cells/model.onnx", "", 0)
    program, name, *arguments = shlex.split(rebuild_command(Path("e.engine"), sidecar))
    parsed = command.make_context(name, arguments).params
    assert (program, name) == ("unetrt", "build")
    assert (parsed.pop("model"), parsed.pop("out")) == (Path("my cells/model.onnx"), Path("e.engine"))
    assert (parsed.pop("flavour"), parsed.pop("force")) == ("tensorrt", False)
    assert BuildOptions(**parsed) == options
