"""Settings: all that decides how fast a network's tiles are here."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unetrt.runtime.engines.flavours import usable_flavour
from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.files.atomic import cache_folder
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import cores, processor, this_machine
from unetrt.runtime.sessions import AUTO, BACKENDS, Backend, unknown


@dataclass(frozen=True)
class Setting:
    """All that decides what a tile takes, but the tile itself.

    Attributes
    ----------
    backend, version
        The inference engine, as `BACKENDS` names it, and its release.
    device
        Name of the processor, or of the GPU.
    threads
        Logical cores that the process may use.
    precision
        What the graph computes in.
    batch
        Tiles in one pass.
    depth, base, channels, classes
        The network's numbers.
    """

    backend: str
    version: str
    device: str
    threads: int
    precision: str
    batch: int
    depth: int
    base: int
    channels: int
    classes: int

    @classmethod
    def here(
        cls, backend: Backend, shape: UNetShape, precision: str = "fp32", batch: int = 1, device: int | None = None
    ) -> "Setting":
        """Return the setting of this machine; `device` is the number of the GPU, as CUDA counts."""
        place = this_machine(device or 0).gpu if backend.gpu else processor()
        return cls(backend.name, _release(backend, device), place, cores(), precision, batch, **asdict(shape))

    @property
    def on_gpu(self) -> bool:
        """Whether the engine computes on a GPU."""
        return any(one.gpu for one in BACKENDS if one.name == self.backend)

    @property
    def shape(self) -> UNetShape:
        """The network's numbers."""
        return UNetShape(self.depth, self.base, self.channels, self.classes)

    @property
    def path(self) -> Path:
        """Where the calibration of this setting is kept."""
        return folder() / f"{sha256(repr(self).encode()).hexdigest()[:32]}.json"

    def __str__(self) -> str:
        engine = f"{self.backend} {self.version}".strip()
        return f"{engine}, {self.precision}, {self.device}, {self.threads} threads"


def folder() -> Path:
    """Return where calibrations are kept, one file a setting."""
    return cache_folder("calibrations")


def chosen_backend(name: str = AUTO, device: int | None = None) -> Backend:
    """Return the backend of that name, or for `auto` the first that is usable here, on a GPU where a number is given.

    Raises
    ------
    OptionError
        There is no such backend.
    BackendUnavailableError
        It is not usable here, or for `auto` none is; the message says why.
    """
    fitting = [one for one in BACKENDS if one.computes and (one.gpu or device is None or name != AUTO)]
    named = [one for one in fitting if (one.automatic if name == AUTO else one.name == name)]
    if not named:
        raise unknown(name)
    reasons = []
    for one in named:
        reason = one.probe(device)
        if reason is None:
            return one
        reasons.append(f"{one.name}: {reason}")
    raise BackendUnavailableError("; ".join(reasons))


def _release(backend: Backend, device: int | None) -> str:
    """Return the release of what a backend computes with, empty where it is not known by the backend's name."""
    if backend.runs_engines:
        flavour = usable_flavour(AUTO, this_machine(device or 0))
        return f"{flavour.title} {flavour.version}"
    package = backend.name.partition("-")[0]
    for candidate in (package, f"{package}-gpu"):
        with suppress(PackageNotFoundError):
            return version(candidate)
    return ""
