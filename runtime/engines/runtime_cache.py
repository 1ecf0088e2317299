"""What TensorRT for RTX has compiled for a GPU, kept on disk: without it every start compiles again."""

import logging
from contextlib import suppress
from hashlib import sha256
from typing import Any

from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.cache_folder import cache_folder, locked
from unetrt.runtime.engines.facts import Facts
from unetrt.runtime.engines.machine import Machine
from unetrt.runtime.errors import OutputError

log = logging.getLogger("unetrt.tensorrt")


class RuntimeCache:
    """A file of compiled kernels, for one engine on one kind of GPU with one driver.

    A file that is damaged, or cannot be written, costs the time to compile again and nothing else.

    Parameters
    ----------
    facts, machine
        Of the engine, and of where it runs.
    """

    def __init__(self, facts: Facts, machine: Machine) -> None:
        parts = (facts.key, machine.gpu, machine.capability, machine.driver, machine.os)
        self.path = cache_folder("runtime") / f"{sha256(repr(parts).encode()).hexdigest()[:32]}.cache"
        self._known = b""

    def restore(self, cache: Any) -> None:
        """Give a TensorRT IRuntimeCache what is known so far."""
        with suppress(OSError):
            self._known = self.path.read_bytes()
            if not cache.deserialize(self._known):
                log.info("%s is of no use to this TensorRT: kernels are compiled again", self.path)

    def keep(self, cache: Any) -> None:
        """Write what has been compiled since; nothing where nothing was."""
        with suppress(OutputError, OSError):
            serialized = cache.serialize()
            if serialized is None or bytes(serialized) == self._known:
                return
            content = bytes(serialized)
            with locked(self.path), whole_file(self.path) as temporary:
                temporary.write_bytes(content)
            self._known = content
