"""How much of a GPU's memory lanes need, said before any of it is taken."""

import logging
from dataclasses import dataclass

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.errors import OutOfMemoryError
from unetrt.runtime.memory import shown
from unetrt.runtime.spec import ModelSpec

log = logging.getLogger("unetrt")

# Bytes that are left alone, for what is not counted: the driver's streams and graphs, kernels that are loaded when they
# first run, sizes that are rounded up. An estimate, not measured.
RESERVE = 128 * 2**20


@dataclass(frozen=True)
class Need:
    """What so many lanes need on the device, in bytes.

    Attributes
    ----------
    lanes
        Their number.
    staging
        Input and output of one lane.
    scratch
        Activations of one pass, in memory that lanes can share.
    own
        What the engine allocates for each lane by itself: weights, activations and workspace. Nothing of it is shared.
    """

    lanes: int
    staging: int
    scratch: int
    own: int = 0

    @classmethod
    def of(cls, spec: ModelSpec, scratch: int, lanes: int, own: int = 0) -> "Need":
        """Return what lanes of a model need."""
        return cls(lanes, spec.new_input().nbytes + spec.new_output().nbytes, scratch, own)

    @property
    def apart(self) -> int:
        """With scratch memory for each lane."""
        return self.lanes * (self.staging + self.scratch + self.own)

    @property
    def shared(self) -> int:
        """With one scratch memory for all."""
        return self.lanes * (self.staging + self.own) + self.scratch

    def ways(self, device: CudaDevice, name: str) -> tuple[bool, ...]:
        """Return whether to share scratch memory, in the order to try it: not, where each lane can have its own.

        Raises
        ------
        OutOfMemoryError
            The lanes do not fit even if they share it; the message gives the numbers.
        """
        free, _ = device.memory()
        may_share = self.lanes > 1 and self.scratch > 0
        if self.apart + RESERVE <= free:
            return (False, True) if may_share else (False,)
        if may_share and self.shared + RESERVE <= free:
            log.info(
                "%s: %d lanes take turns, as scratch memory for each needs %s and %s are free",
                name, self.lanes, shown(self.apart), shown(free),
            )  # fmt: skip
            return (True,)
        raise self.refused(device, name)

    def refused(self, device: CudaDevice, name: str) -> OutOfMemoryError:
        """Return the error for lanes that do not fit, with numbers."""
        free, total = device.memory()
        need = "1 lane needs" if self.lanes == 1 else f"{self.lanes} lanes need"
        parts = [f"{self.lanes} x {shown(self.staging)} for tiles"]
        parts += [f"{self.lanes} x {shown(self.own)} for weights, activations and workspace"] if self.own else []
        parts += [f"{shown(self.scratch)} for activations"] if self.scratch or not self.own else []
        return OutOfMemoryError(
            f"{name}: {need} {shown(self.shared)} ({', '.join(parts)}) and {shown(RESERVE)} beside "
            f"them, and {shown(free)} of {shown(total)} are free: {self._advice(free)}"
        )

    def _advice(self, free: int) -> str:
        fitting = min(self.lanes - 1, (free - RESERVE - self.scratch) // (self.staging + self.own))
        return f"use {_lanes(fitting)}" if fitting > 0 else "use a smaller tile or batch (`unetrt plan --memory`)"


def _lanes(count: int) -> str:
    return "1 lane" if count == 1 else f"{count} lanes"
