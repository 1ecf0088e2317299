"""Whether an engine runs on a machine; where not, what stands against it, and the command that builds one that does."""

import os
import shlex
from pathlib import Path
from subprocess import list2cmdline

from unetrt.runtime.engines.engine_file import Sidecar
from unetrt.runtime.engines.facts import Difference, Facts
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.engines.machine import Machine, why_no_gpu
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.errors import BackendUnavailableError, EngineError

# What TensorRT for RTX builds for unless told otherwise (its documentation, "CPU-Only AOT and TensorRT-RTX Engines").
OLDEST_BY_DEFAULT = (8, 0)


def require_fit(path: Path, sidecar: Sidecar, machine: Machine, version: str) -> None:
    """Raise EngineError where an engine cannot run on `machine` with that version of its TensorRT.

    The message names the fact that differs, what the engine was built with, what is here, and how to build it anew.
    """
    misfit = first_misfit(sidecar.facts, machine, version)
    if misfit is not None and misfit.name == "GPU":
        raise EngineError(f"{path} runs on a GPU, {misfit.there}, and {why_no_gpu()}")
    if misfit is not None:
        raise EngineError(
            f"{path} does not fit this machine: built with {misfit.name} {misfit.there or 'none'}, here "
            f"{misfit.here or 'none'}; rebuild it with `{rebuild_command(path, sidecar)}`"
        )


def misfit_here(path: Path, sidecar: Sidecar, machine: Machine) -> str | None:
    """Return one sentence that says why an engine does not run on this machine, or None where it does."""
    flavour = named_flavour(sidecar.facts.flavour)
    try:
        require_fit(path, sidecar, machine, flavour.version)
    except (BackendUnavailableError, EngineError) as error:
        return str(error)
    return None


def first_misfit(facts: Facts, machine: Machine, version: str) -> Difference | None:
    """Return the first fact that stands against running an engine, if there is one."""
    flavour, built = named_flavour(facts.flavour), facts.machine
    if not _version_fits(facts, version):
        return Difference(f"{flavour.title} version", facts.version, version)
    if not flavour.portable and machine.os != built.os:
        return Difference("system", built.os, machine.os)
    if not machine.gpu:
        return Difference("GPU", built.gpu or f"of compute capability {targets(facts)}", "")
    if flavour.portable:
        fits = _number(machine.capability) >= OLDEST_BY_DEFAULT
        if facts.options.capabilities:
            fits = machine.capability in facts.options.capabilities
        return None if fits else Difference("compute capability", targets(facts), machine.capability)
    if facts.options.hardware_compatible == "ampere-plus":
        fits = _number(machine.capability) >= (8, 0)
    else:
        fits = machine.capability == built.capability
    return None if fits else Difference("compute capability", built.capability, machine.capability)


def rebuild_command(path: Path, sidecar: Sidecar) -> str:
    """Return the command that builds an engine anew, with the options it was built with."""
    words = ["unetrt", "build", sidecar.source, "-o", str(path), *arguments(sidecar.facts)]
    return list2cmdline(words) if os.name == "nt" else shlex.join(words)


def arguments(facts: Facts) -> list[str]:
    """Return the options of `unetrt build` that ask for what `facts` hold."""
    options, usual = facts.options, BuildOptions()
    given = ["--flavour", facts.flavour]
    given += [] if options.workspace is None else ["--workspace", str(options.workspace)]
    given += [] if options.level is None else ["--level", str(options.level)]
    given += ["--tf32"] if options.tf32 else []
    given += ["--version-compatible"] if options.version_compatible else []
    if options.hardware_compatible != usual.hardware_compatible:
        given += ["--hardware-compatible", options.hardware_compatible]
    for capability in options.capabilities:
        given += ["--capability", capability]
    return given


def targets(facts: Facts) -> str:
    """Return the compute capabilities that an engine of TensorRT for RTX was built for."""
    return ", ".join(facts.options.capabilities) or "8.0 and newer"


def _version_fits(facts: Facts, version: str) -> bool:
    if not facts.options.version_compatible:
        return version == facts.version
    there, here = _number(facts.version), _number(version)
    return there[0] == here[0] and here >= there


def _number(version: str) -> tuple[int, ...]:
    """Return a version as numbers, to compare: 8.9 < 12.0."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
