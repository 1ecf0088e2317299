"""The command `unetrt models`: the models that come with unetrt.

Each has a card beside its file, `NAME.md`: Markdown after a front matter in JSON, between two lines of `---`.
"""

from dataclasses import dataclass, fields

import click

from unetrt.cli import echo
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import bundled_names, bundled_path, read_spec
from unetrt.runtime.records import from_json

# Line before and after the front matter of a card.
FENCE = "---"


@dataclass(frozen=True)
class ModelCard:
    """The front matter of a card: one line of text each.

    Attributes
    ----------
    task
        What the model segments.
    licence
        SPDX identifier of the licence.
    scores
        The most important scores, and the images that they are of.

    Raises
    ------
    ModelFileError
        A text is empty, or does not fit on a terminal's line.
    """

    task: str
    licence: str
    scores: str

    def __post_init__(self) -> None:
        for field in fields(self):
            text = getattr(self, field.name)
            if not text.strip() or not text.isprintable():
                raise ModelFileError(f"invalid {field.name} {text!r:.60}: use printable characters on one line")


def read_card(name: str) -> ModelCard:
    """Return the front matter of a model's card; raises ModelFileError where it is missing or invalid."""
    path = bundled_path(name).with_suffix(".md")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if lines[:1] != [FENCE] or FENCE not in lines[1:]:
        raise ModelFileError(f"{path} does not begin with a front matter: write JSON between two lines of {FENCE}")
    return from_json("\n".join(lines[1 : lines.index(FENCE, 1)]), ModelCard, f"the front matter of {path}")


@click.command("models")
def command() -> None:
    """List the models that come with unetrt.

    Commands and `Segmenter` take their names instead of the path of a model file. If a file or folder has the same
    name, it is taken instead.
    """
    for name in bundled_names():
        echo("\n".join(_about(name)))
    if not bundled_names():
        echo("no models come with this installation")


def _about(name: str) -> list[str]:
    """Return the name and the task of a model, and below them what the file holds, its training and its scores."""
    path, card = bundled_path(name), read_card(name)
    spec = read_spec(path)
    network = "".join(f"{part} {size}, " for part, size in spec.network.items())
    steps, images = spec.training.get("steps"), spec.training.get("images")
    trained = f"trained for {steps} steps on {images} images, " if steps and images else ""
    return [
        f"{name}: {card.task}",
        f"  {path.stat().st_size / 1e6:.1f} MB, {spec.precision}, {network}classes: {', '.join(spec.classes)}",
        f"  {trained}licence {card.licence}",
        f"  {card.scores}",
    ]
