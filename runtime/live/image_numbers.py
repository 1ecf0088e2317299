"""Gaps in the numbers that a camera gives its images: frames that were exposed and never came."""

from collections.abc import Mapping
from typing import Any

# The keys of Micro-Manager's image metadata (MMCore, `g_Keyword_Metadata_ImageNumber` and `..._CameraLabel`).
NUMBER, CAMERA = "ImageNumber", "Camera"


class ImageNumbers:
    """Counts the images that are missing between those that come.

    A camera begins at 0 with each sequence, so a number that is not higher than the last begins anew. What is missing
    before the first image of a sequence, or after its last, leaves no gap and is not seen.

    Attributes
    ----------
    missed
        How many images were missing so far.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._last: dict[str, int] = {}

    def restart(self) -> None:
        """Begin anew: the next image is the first."""
        self._last = {}

    def see(self, metadata: Mapping[str, Any] | None) -> int | None:
        """Take note of an image by its camera's metadata, and return its number; None where there is none."""
        try:
            number = int((metadata or {})[NUMBER])
            camera = str((metadata or {}).get(CAMERA, ""))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        last = self._last.get(camera)
        if last is not None and number > last + 1:
            self.missed += number - last - 1
        self._last[camera] = number
        return number
