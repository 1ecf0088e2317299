"""How much of a GPU's memory lanes need, said before any of it is taken."""

import logging
from dataclasses import dataclass

from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.errors import OutOfMemoryError
from unetrt.runtime.memory import shown
from unetrt.runtime.spec import ModelSpec

log = logging.getLogger("unetrt")


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
        Activations of one pass.
    """

    lanes: int
    staging: int
    scratch: int

    @classmethod
    def of(cls, spec: ModelSpec, scratch: int, lanes: int) -> "Need":
        """Return what lanes of a model need."""
        return cls(lanes, spec.new_input().nbytes + spec.new_output().nbytes, scratch)

    @property
    def apart(self) -> int:
        """With scratch memory for each lane."""
        return self.lanes * (self.staging + self.scratch)

    @property
    def shared(self) -> int:
        """With one scratch memory for all."""
        return self.lanes * self.staging + self.scratch

    def must_share(self, device: CudaDevice, name: str) -> bool:
        """Tell whether the lanes must share their scratch memory to fit on the device, which is logged.

        Raises
        ------
        OutOfMemoryError
            They do not fit even so; the message gives the numbers.
        """
        free, total = device.memory()
        if self.apart <= free:
            return False
        if self.shared <= free and self.lanes > 1:
            log.info(
                "%s: %d lanes take turns, as scratch memory for each needs %s and %s are free",
                name, self.lanes, shown(self.apart), shown(free),
            )  # fmt: skip
            return True
        raise OutOfMemoryError(
            f"{name}: {self.lanes} lanes need {shown(self.shared)} ({self.lanes} x {shown(self.staging)} for tiles, "
            f"{shown(self.scratch)} for activations), and {shown(free)} of {shown(total)} are free: "
            f"{self._advice(free)}"
        )

    def _advice(self, free: int) -> str:
        fitting = (free - self.scratch) // self.staging
        return f"use {fitting} lanes" if fitting > 0 else "use a smaller tile or batch (`unetrt plan --memory`)"
