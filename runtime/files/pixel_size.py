"""The physical size of a pixel: read from the metadata of images, written to every output.

Where it is unknown, None takes its place. Units have the names of OME (UnitsLength of the OME schema 2016-06); other
spellings become those names:

>>> PixelSize(0.65, 0.65, unit="micron")
PixelSize(y=0.65, x=0.65, z=None, unit='µm')
>>> PixelSize(65, 65, unit="nm").in_micrometres
PixelSize(y=0.065, x=0.065, z=None, unit='µm')
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unetrt.runtime.errors import OptionError, shown

# Micrometres of a unit, by its name in OME.
MICROMETRES: Mapping[str, float] = {
    "m": 1e6,
    "dm": 1e5,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25400.0,
    "thou": 25.4,
}
# Other spellings: those of ImageJ (`micron`, and the escape that its TIFFs hold), of OME-Zarr (UDUNITS-2: full words),
# the Greek letter mu instead of the micro sign, and the letter A with a ring instead of the sign for Angstrom.
SPELLINGS: Mapping[str, str] = {
    "um": "µm",
    "\u03bcm": "µm",
    "\\u00B5m": "µm",
    "micron": "µm",
    "microns": "µm",
    "micrometer": "µm",
    "micrometre": "µm",
    "meter": "m",
    "metre": "m",
    "decimeter": "dm",
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "millimetre": "mm",
    "nanometer": "nm",
    "nanometre": "nm",
    "picometer": "pm",
    "picometre": "pm",
    "angstrom": "Å",
    "\u212b": "Å",
    "A": "Å",
    "inch": "in",
}
# Units that say that no size is known.
NO_UNITS = {"", "pixel", "pixels", "px"}
# Smallest and largest size, in any unit: products and squares stay finite.
LEAST, MOST = 1e-12, 1e12


@dataclass(frozen=True)
class PixelSize:
    """Size of a pixel in `unit`.

    Attributes
    ----------
    y, x
        Distance between rows, and between columns.
    z
        Distance between planes; None where it is unknown or there are no planes.
    unit
        Name of the unit in OME, such as ``"µm"``; another spelling is replaced by it. A unit that is not a length is
        kept as it is.

    Raises
    ------
    OptionError
        A size is not a number from 1e-12 to 1e12, or the unit is not a text of at most 60 characters.
    """

    y: float
    x: float
    z: float | None = None
    unit: str = "µm"

    def __post_init__(self) -> None:
        if not isinstance(self.unit, str) or not self.unit.isprintable() or len(self.unit) > 60:
            raise OptionError(f"unit must be the name of a unit, such as µm (got {shown(self.unit)})")
        unit = self.unit.strip()
        object.__setattr__(self, "unit", SPELLINGS.get(unit, unit))
        for name in ("y", "x", "z"):
            size = getattr(self, name)
            if size is None and name == "z":
                continue
            if not _is_size(size):
                raise OptionError(f"{name} must be the size of a pixel in {self.unit}, above 0 (got {shown(size)})")
            object.__setattr__(self, name, float(size))

    @classmethod
    def found(cls, y: Any, x: Any, z: Any = None, unit: Any = "µm") -> "PixelSize | None":
        """Return the size that a file's metadata give; None where they give none, as a size of 0 or a unit `pixel`."""
        if not isinstance(unit, str) or unit.strip().lower() in NO_UNITS or not (_is_size(y) and _is_size(x)):
            return None
        try:
            return cls(y, x, z if _is_size(z) else None, unit)
        except OptionError:
            return None

    @classmethod
    def of_axes(cls, sizes: Mapping[str, tuple[Any, Any]]) -> "PixelSize | None":
        """Return the size that a file's metadata give for each axis, in the unit of Y; None as in `found`.

        Parameters
        ----------
        sizes
            Size and unit of the axes Y, X and, if it is known, Z.
        """
        each = {axis: cls.found(size, size, unit=unit) for axis, (size, unit) in sizes.items()}
        rows = each.get("Y")
        if rows is None:
            return None
        x, z = (_in_unit(each.get(axis), rows.unit) for axis in "XZ")
        return cls.found(rows.y, x, z, rows.unit)

    @property
    def in_micrometres(self) -> "PixelSize | None":
        """The same size in µm; None where the unit is not a length that is known here."""
        factor = MICROMETRES.get(self.unit)
        if factor is None:
            return None
        sizes = (None if size is None else float(f"{size * factor:.12g}") for size in (self.y, self.x, self.z))
        return PixelSize.found(*sizes)

    @property
    def area(self) -> float | None:
        """Area of a pixel in µm²; None where the unit is not a length."""
        size = self.in_micrometres
        return None if size is None else size.y * size.x


def _in_unit(size: PixelSize | None, unit: str) -> float | None:
    """Return the distance between rows in a unit; None where it cannot be converted."""
    if size is None or size.unit == unit:
        return None if size is None else size.y
    given, wanted = MICROMETRES.get(size.unit), MICROMETRES.get(unit)
    return None if given is None or wanted is None else float(f"{size.y * given / wanted:.12g}")


def _is_size(value: object) -> bool:
    is_number = isinstance(value, int | float) or type(value).__module__ == "numpy"
    try:
        return is_number and not isinstance(value, bool) and LEAST <= float(value) <= MOST  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
