"""Names of files and folders, made of text from elsewhere: images in a file, stage positions, channels, users.

Such a text is a name, never a path. `safe_name` replaces what a disk of Linux, macOS or Windows does not take as a part
of a name; `safe_names` also keeps several names apart; `require_name` refuses instead.

>>> safe_name("../monday.ome.zarr"), safe_name("A/1: DAPI"), safe_name("con"), safe_name("Pos0")
('_monday.ome.zarr', 'A_1_ DAPI', '_con', 'Pos0')
>>> safe_names(["a/b", "A_b", ""])
['a_b', 'A_b_1', '2']
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from unicodedata import normalize

from unetrt.runtime.errors import OptionError, shown
from unetrt.runtime.files.outputs import KINDS

# Characters that no name of a file may have on Windows or, as "/", anywhere.
FORBIDDEN = '/\\:*?"<>|'
# Names of devices on Windows, with any suffix (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\s*(?:\.|$)", re.IGNORECASE)
# Longest name in bytes of UTF-8 that is made of a text.
LONGEST = 100
# Longest name of a file in bytes: that of Linux' and macOS' disks, and of exFAT in characters.
NAME = 255


def safe_name(text: str) -> str:
    """Return a text as a name of at most `LONGEST` bytes; empty if nothing of it can be part of a name.

    Characters that paths do not allow or terminals do not show become _, and blanks and dots at both ends are removed.
    Names of devices begin with _.
    """
    letters = "".join(letter if letter.isprintable() and letter not in FORBIDDEN else "_" for letter in text.strip())
    name = letters.strip(" .").encode()[:LONGEST].decode(errors="ignore").strip(" .")
    return f"_{name}" if DEVICES.match(name) else name


def safe_names(texts: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Return a name for each of several texts, no two the same on any disk.

    A text without a name becomes its index, from 0; a second one with the same name ends with its index.

    Parameters
    ----------
    texts
        The texts.
    taken
        Other names in the same folder.
    """
    used = set(map(same_name, taken))
    names = []
    for index, text in enumerate(texts):
        name = stem = safe_name(text) or str(index)
        number = index
        while same_name(name) in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(same_name(name))
        names.append(name)
    return names


def same_name(name: str) -> str:
    """Return what two names share if disks that ignore case, or the composition of letters, take them for one."""
    return normalize("NFC", name.casefold())


def has_room(name: str) -> bool:
    """Return whether a name, with the longest suffix of a file that is written for it, is a name of a file."""
    suffixes = (kind.place.partition("{}")[2] for kind in KINDS.values())
    return len(os.fsencode(PurePosixPath(name).name)) <= NAME - max(map(len, suffixes))


def require_name(name: object) -> None:
    """Raise OptionError unless files in a folder can have a name; it may contain folders, with `/` between them."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(part and _is_safe(part) and has_room(part) for part in parts):
        raise OptionError(
            f"name must be that of files without a suffix, such as 'slide' or 'plate/well' (got {shown(name)})"
        )


def _is_safe(part: str) -> bool:
    """Return whether a name of any length has nothing that `safe_name` replaces."""
    allowed = part.isprintable() and not set(part) & set(FORBIDDEN) and part.strip(". ") == part
    return allowed and not DEVICES.match(part)
