"""What only the makers of a model know, for its bioimage.io package."""

import re
from dataclasses import dataclass

from unetrt.runtime.errors import OptionError

NAME = re.compile(r"[A-Za-z0-9_+() -]{5,128}")


@dataclass(frozen=True)
class Citation:
    """A publication to cite.

    Attributes
    ----------
    text
        Authors, title, year.
    doi
        Its digital object identifier.
    """

    text: str
    doi: str


PAPER = Citation(
    "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
    "10.1007/978-3-319-24574-4_28",
)


@dataclass(frozen=True)
class Metadata:
    """What only its makers know of a model.

    Attributes
    ----------
    name
        5 to 128 letters, digits, spaces and _ + - ( ).
    authors
        Names of persons.
    license
        An SPDX identifier, such as CC-BY-4.0; None: not said.
    description
        A sentence or two; empty: one that follows from the model.
    cite
        Publications.
    tags
        Words to find the model by, beyond those that follow from the model.

    Raises
    ------
    OptionError
        A name that the format refuses.
    """

    name: str = "U-Net segmentation"
    authors: tuple[str, ...] = ()
    license: str | None = None
    description: str = ""
    cite: tuple[Citation, ...] = (PAPER,)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise OptionError(
                f"the name {self.name!r} does not fit bioimage.io: use 5 to 128 letters, digits, spaces and _ + - ( )"
            )
        if wrong := [author for author in self.authors if not author.strip() or "/" in author]:
            raise OptionError(f"author {wrong[0]!r} does not fit bioimage.io: give a person's name, without slashes")
