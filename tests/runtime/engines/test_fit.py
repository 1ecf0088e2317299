import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.engines.machines import ADA, AMPERE, FACTS, HOPPER, NONE, RTX, SPEC, TURING, WINDOWS
from unetrt.cli.build import command as build
from unetrt.runtime.engines.engine_file import BuildOptions, Sidecar, first_misfit, rebuild_command, require_fit
from unetrt.runtime.engines.flavours import CAPABILITIES, FLAVOURS, NAMES
from unetrt.runtime.errors import EngineError

AMPERE_PLUS = replace(FACTS, options=BuildOptions(hardware_compatible="ampere-plus"))
NEWER = replace(FACTS, options=BuildOptions(version_compatible=True))
SOURCE = "my cells/model.onnx"
DEFAULT_CAPABILITIES = "8.0, 8.6, 8.9, 12.0, 12.1 and newer"
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
        (RTX, TURING, "1.7.1.116", f"built with compute capability {DEFAULT_CAPABILITIES}, here 7.5"),
        (FOR_TURING, replace(ADA, capability="12.2"), "1.7.1.116", "built with compute capability 7.5, here 12.2"),
        (FOR_TURING, ADA, "1.7.1.116", "built with compute capability 7.5, here 8.9"),
        (RTX, ADA, "1.6.0", "built with TensorRT for RTX version 1.7.1.116, here 1.6.0"),
    ],
)
def test_what_does_not_fit_is_named_with_both_sides_and_the_command_that_rebuilds(facts, machine, version, message):
    sidecar = Sidecar(facts, SPEC, SOURCE, "", 0)
    with pytest.raises(
        EngineError, match=f"^model.engine does not fit this machine: .*{message}; rebuild it with"
    ) as caught:
        require_fit(Path("model.engine"), sidecar, machine, version)
    command = rebuild_command(Path("model.engine"), sidecar, machine)
    assert f"`{command}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    rebuilt = replace(facts, machine=machine, version=version, options=options_of(command))
    assert first_misfit(rebuilt, machine, version) is None


# The bits that the library of TensorRT for RTX 1.7.1.116 gives to compute capabilities, none to most; whether engines
# that were built for no capability in particular run there.
@pytest.mark.parametrize(
    ("capability", "unnamed", "named"),
    [
        *((capability, False, False) for capability in ("5.0", "6.1", "7.0", "7.2", "8.7", "8.8")),
        *((capability, False, False) for capability in ("9.0", "10.0", "10.1", "10.3", "11.0")),
        ("7.5", False, True),
        *((capability, True, True) for capability in ("8.0", "8.6", "8.9", "12.0", "12.1")),
        *((capability, True, False) for capability in ("12.2", "12.8", "13.0")),
    ],
)
def test_the_gpus_that_tensorrt_for_rtx_runs_on(capability, unnamed, named):
    machine, (tensorrt, rtx) = replace(ADA, capability=capability), FLAVOURS
    assert (first_misfit(RTX, machine, RTX.version) is None) == unnamed
    assert (capability in CAPABILITIES) == named
    for one in CAPABILITIES:
        facts = replace(RTX, options=BuildOptions(capabilities=(one,)))
        assert (first_misfit(facts, machine, RTX.version) is None) == (one == capability)
    assert (rtx.why_not_on(machine) is None) == (unnamed or named)
    assert tensorrt.why_not_on(machine) is None
    facts = replace(RTX, options=BuildOptions.for_gpu(rtx, machine))
    assert (first_misfit(facts, machine, RTX.version) is None) == (unnamed or named)


def test_where_no_engine_of_its_kind_runs_nothing_is_to_be_rebuilt():
    sidecar = Sidecar(FOR_TURING, SPEC, SOURCE, "", 0)
    with pytest.raises(EngineError) as caught:
        require_fit(Path("model.engine"), sidecar, HOPPER, RTX.version)
    said = str(caught.value)
    assert said.startswith(
        "model.engine does not fit this machine: TensorRT for RTX does not run on compute capability 9."
    )
    assert said.endswith("onnxruntime-cuda (pip install 'unetrt[gpu]'), and open my cells/model.onnx with it")
    assert "rebuild" not in said
    assert "\n" not in said
    with pytest.raises(EngineError, match="does not run on compute capability 9.0"):
        require_fit(Path("model.engine"), sidecar, HOPPER)  # whether TensorRT for RTX is installed or not


def options_of(command):
    """The options of a command that builds."""
    program, name, *arguments = shlex.split(command)
    parsed = build.make_context(name, arguments).params
    assert (program, name) == ("unetrt", "build")
    assert (parsed.pop("model"), parsed.pop("out")) == (Path(SOURCE), Path("model.engine"))
    assert (parsed.pop("flavour") in NAMES, parsed.pop("force")) == (True, False)
    return BuildOptions(**parsed)


@pytest.mark.parametrize(
    ("facts", "gpu"), [(FACTS, "NVIDIA RTX 4090"), (RTX, "of compute capability 8.0, .*, 12.1 and newer")]
)
def test_where_there_is_no_gpu_nothing_is_to_be_rebuilt(facts, gpu):
    sidecar = Sidecar(facts, SPEC, SOURCE, "", 0)
    with pytest.raises(EngineError, match=f"^model.engine needs a GPU \\({gpu}\\), and no GPU was found: "):
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
    sidecar = Sidecar(replace(FACTS, options=options), SPEC, SOURCE, "", 0)
    assert options_of(rebuild_command(Path("model.engine"), sidecar)) == options
