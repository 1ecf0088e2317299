"""What a build is asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from unetrt.runtime.engines.flavours import CAPABILITIES, Flavour, rtx_serves
from unetrt.runtime.engines.machine import Machine
from unetrt.runtime.errors import OptionError

Compatibility = Literal["none", "same-capability", "ampere-plus"]
COMPATIBILITIES: tuple[Compatibility, ...] = get_args(Compatibility)


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; what a flavour does not have is refused.

    Attributes
    ----------
    workspace
        Bytes that a layer may use for itself; None leaves it to TensorRT.
    level
        How long to look for faster kernels, 0 to 5; None is TensorRT's default, 3.
    tf32
        Whether FP32 convolutions may round their factors to 10 bits; without, FP32 is FP32.
    version_compatible
        Whether newer releases of the same major version can load it (TensorRT).
    hardware_compatible
        Whether other GPUs can: those of the same compute capability, or all from Ampere on (TensorRT).
    capabilities
        Compute capabilities to build for (TensorRT for RTX); none: `flavours.DEFAULT_CAPABILITIES` and newer.
    """

    workspace: int | None = None
    level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: Compatibility = "none"
    capabilities: tuple[str, ...] = ()

    @classmethod
    def for_gpu(cls, flavour: Flavour, machine: Machine) -> "BuildOptions":
        """Return what is asked for by default so that the engine runs on the GPU of `machine`."""
        named = flavour.portable and machine.capability in CAPABILITIES and not rtx_serves(machine.capability)
        return cls(capabilities=(machine.capability,) if named else ())

    def require_for(self, flavour: Flavour, machine: Machine) -> None:
        """Raise OptionError where an option has no meaning, or none for `flavour`, or one is missing for `machine`.

        An engine that does not run on the GPU at hand is only built where the GPUs that it is for are named.
        """
        if self.workspace is not None and self.workspace < 1:
            raise OptionError(f"a workspace of {self.workspace} bytes is none: use 1GiB or more")
        if self.level is not None and not 0 <= self.level <= 5:
            raise OptionError(f"optimisation level {self.level} does not exist: use 0 to 5")
        if flavour.portable and (self.version_compatible or self.hardware_compatible != "none"):
            raise OptionError(
                f"{flavour.title} builds for several GPUs by itself, and only for its own version: use --capability, "
                "not --version-compatible and --hardware-compatible"
            )
        if self.capabilities and not flavour.portable:
            raise OptionError(
                f"{flavour.title} builds for the GPU at hand: use --hardware-compatible ampere-plus, or --capability "
                "with --flavour tensorrt-rtx"
            )
        if not self.capabilities and (missing := BuildOptions.for_gpu(flavour, machine).capabilities):
            raise OptionError(
                f"{flavour.title} builds for compute capability {missing[0]} ({machine.gpu}) only where it is named: "
                f"use --capability {missing[0]}, or name those of the GPUs that the engine is for"
            )
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise OptionError(
                    f"{flavour.title} cannot build for compute capability {capability}: use {', '.join(CAPABILITIES)}"
                )
