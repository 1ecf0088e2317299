"""TensorRT's timing cache: what it has measured of kernels, for the next build on the same GPU."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.cache_folder import cache_folder, locked
from unetrt.runtime.engines.facts import Facts
from unetrt.runtime.errors import OutputError


class TimingCache:
    """A file of measured times that builds in any number of processes share.

    A file that is damaged, or cannot be written, costs the time to measure again and nothing else.

    Parameters
    ----------
    facts
        Of the engine to be built: times hold for one GPU, driver and version of TensorRT.
    """

    def __init__(self, facts: Facts) -> None:
        machine = facts.machine
        parts = (facts.flavour, facts.version, machine.gpu or "no-gpu", machine.driver, machine.os)
        name = "_".join(part.replace(" ", "-").replace("/", "-") for part in parts if part)
        self.path = cache_folder("timing") / f"{name}.cache"

    def attach(self, config: Any) -> None:
        """Give a TensorRT IBuilderConfig what is known so far."""
        times = config.create_timing_cache(self._read()) or config.create_timing_cache(b"")
        config.set_timing_cache(times, False)

    def keep(self, config: Any) -> None:
        """Add what a build has measured to what other builds have added meanwhile, and write that."""
        with suppress(OutputError, OSError), locked(self.path):
            times = config.get_timing_cache()
            others = config.create_timing_cache(self._read())
            if others is not None:
                times.combine(others, ignore_mismatch=False)
            with whole_file(self.path) as temporary:
                temporary.write_bytes(bytes(times.serialize()))

    def _read(self) -> bytes:
        with suppress(OSError):
            return Path(self.path).read_bytes()
        return b""
