"""Whether an engine runs on a machine; where not, what stands against it, and the command that builds one that does."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from subprocess import list2cmdline

from unetrt.runtime.engines.engine_file import Sidecar
from unetrt.runtime.engines.facts import Difference, Facts
from unetrt.runtime.engines.flavours import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    named_flavour,
    rtx_serves,
    version_numbers,
)
from unetrt.runtime.engines.machine import Machine, why_no_gpu
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.errors import BackendUnavailableError, EngineError


def require_fit(path: Path, sidecar: Sidecar, machine: Machine, version: str | None = None) -> None:
    """Raise EngineError where an engine cannot run on `machine` with a version of its TensorRT, by default that here.

    The message names the fact that differs, what the engine was built with, what is here, and how to build it anew.
    """
    flavour = named_flavour(sidecar.facts.flavour)
    if reason := flavour.why_not_on(machine):
        raise EngineError(f"{path} does not fit this machine: {reason}, and give it {sidecar.source}")
    misfit = first_misfit(sidecar.facts, machine, version or flavour.version)
    if misfit is None:
        return
    if misfit.name == "GPU":
        raise EngineError(f"{path} runs on a GPU, {misfit.there}, and {why_no_gpu()}")
    raise EngineError(
        f"{path} does not fit this machine: built with {misfit.name} {misfit.there or 'none'}, here "
        f"{misfit.here or 'none'}; rebuild it with `{rebuild_command(path, sidecar, machine)}`"
    )


def misfit_here(path: Path, sidecar: Sidecar, machine: Machine) -> str | None:
    """Return one sentence that says why an engine does not run on this machine, or None where it does."""
    try:
        require_fit(path, sidecar, machine)
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
        fits = rtx_serves(machine.capability, facts.options.capabilities)
        return None if fits else Difference("compute capability", targets(facts), machine.capability)
    fits = machine.capability == built.capability
    if facts.options.hardware_compatible == "ampere-plus":
        fits = _is_ampere_or_newer(machine)
    return None if fits else Difference("compute capability", built.capability, machine.capability)


def rebuild_command(path: Path, sidecar: Sidecar, machine: Machine | None = None) -> str:
    """Return the command that builds an engine as it was built, but for what keeps it from running on `machine`."""
    facts = sidecar.facts if machine is None else _fitting(sidecar.facts, machine)
    words = ["unetrt", "build", sidecar.source, "-o", str(path), *arguments(facts)]
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
    return ", ".join(facts.options.capabilities) or f"{', '.join(DEFAULT_CAPABILITIES)} and newer"


def _fitting(facts: Facts, machine: Machine) -> Facts:
    """Return facts with the options that an engine for the GPU of `machine` needs."""
    options = facts.options
    if options.hardware_compatible == "ampere-plus" and not _is_ampere_or_newer(machine):
        options = replace(options, hardware_compatible="none")
    if named_flavour(facts.flavour).portable and not rtx_serves(machine.capability, options.capabilities):
        nameable = machine.capability in CAPABILITIES
        options = replace(options, capabilities=(*options.capabilities, machine.capability) if nameable else ())
    return replace(facts, options=options)


def _version_fits(facts: Facts, version: str) -> bool:
    if not facts.options.version_compatible:
        return version == facts.version
    there, here = version_numbers(facts.version), version_numbers(version)
    return there[0] == here[0] and here >= there


def _is_ampere_or_newer(machine: Machine) -> bool:
    """Tell whether TensorRT's AMPERE_PLUS is for the GPU of `machine`: unlike TensorRT for RTX, it leaves none out."""
    return version_numbers(machine.capability) >= (8, 0)
