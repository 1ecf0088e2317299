"""`unetrt eval`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from unetrt.runtime.errors import DatasetError, FrameError, OptionError

if TYPE_CHECKING:
    from unetrt.trainer.evaluation import Tally

# Heading, key in the JSON, format.
INSTANCES = (
    ("IoU", "iou", ".3f"),
    ("SEG", "seg", ".3f"),
    ("AP.50", "ap50", ".3f"),
    ("AP.75", "ap75", ".3f"),
    ("mAP", "mean_ap", ".3f"),
    ("pixel err", "pixel_error", ".4f"),
    ("Rand F", "rand_f_score", ".3f"),
    ("warp err", "warping_error", ".5f"),
    ("objects", "objects", "d"),
    ("found", "found", "d"),
    ("merged", "merged", "d"),
    ("split", "split", "d"),
)
CLASSES = (("IoU", "iou", ".3f"), ("pixel err", "pixel_error", ".4f"))


@click.command("eval")
@click.argument("predicted", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--classes", type=int, help="Both hold class indices 0 ... N-1, not instances.")
@click.option("--ignore-label", type=int, help="Label of what is not annotated [default: 255 with --classes].")
@click.option("--ignore", type=click.Path(path_type=Path), help="Folder of masks, not 0 where nothing is annotated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    predicted: Path,
    labels: Path,
    classes: int | None,
    ignore_label: int | None,
    ignore: Path | None,
    as_json: bool,
) -> None:
    """Score PREDICTED against LABELS, two folders of label images, or two files: each image, and all pooled.

    Instances: foreground IoU, the CTC's SEG, average precision at IoUs of 0.5 and 0.75 and its mean over 0.5 ... 0.95
    (TP / (TP + FP + FN)), pixel error, Rand F-score, warping error, and how many objects are merged and split. With
    --classes: IoU (the mean over classes) and pixel error. Every file of LABELS needs one of the same name (without
    suffix; man_seg007 is t007 or mask007) in PREDICTED. "-" is a score that an image without objects does not have.
    """
    from unetrt.trainer.evaluation import pooled

    tallies = dict(_tallies(predicted, labels, ignore, classes, ignore_label))
    everything = pooled(list(tallies.values()))
    if as_json:
        images = [{"name": name, **tally.to_dict()} for name, tally in tallies.items()]
        click.echo(json.dumps({"images": images, "pooled": everything.to_dict()}, indent=2))
        return
    columns = INSTANCES if classes is None else (*CLASSES, *_each_class(classes))
    width = max(len(name) for name in (*tallies, "pooled"))
    click.echo(" " * width + "".join(f"{heading:>11s}" for heading, _, _ in columns))
    for name, tally in (*tallies.items(), ("pooled", everything)):
        scores = _flat(tally)
        click.echo(f"{name:{width}s}" + "".join(f"{_shown(scores[key], kind):>11s}" for _, key, kind in columns))


def _tallies(
    predicted: Path, labels: Path, ignored: Path | None, classes: int | None, ignore_label: int | None
) -> Iterator[tuple[str, "Tally"]]:
    """Compare every plane of every file of `labels`; yields its name and tally."""
    from unetrt.runtime.images import read_label_stack
    from unetrt.trainer.layouts import by_stem

    truths, guesses = by_stem(labels), {_key(stem): path for stem, path in by_stem(predicted).items()}
    masks = {} if ignored is None else by_stem(ignored)
    if predicted.is_file() and labels.is_file():
        guesses = {_key(stem): predicted for stem in truths}
    for stem, path in sorted(truths.items()):
        if _key(stem) not in guesses:
            raise DatasetError(f"{predicted} has no labels for {path.name}")
        guess, truth = read_label_stack(guesses[_key(stem)]), read_label_stack(path)
        mask = read_label_stack(masks[stem]) if stem in masks else None
        _require_same_size(path, predicted=guess, true=truth, ignored=mask)
        for index in range(len(truth)):
            name = stem if len(truth) == 1 else f"{stem}[{index}]"
            unknown = None if mask is None else mask[index] > 0
            yield name, _tally(guess[index], truth[index], unknown, _Meaning(path, classes, ignore_label))


def _key(stem: str) -> str:
    """Return what pairs two files: their stem, or the time in a name of the Cell Tracking Challenge."""
    match = re.fullmatch(r"(?:man_seg|mask|t)(\d+)", stem)
    return match[1] if match else stem


def _require_same_size(path: Path, **planes: Any) -> None:
    """Raise DatasetError unless all of `planes` (N, H, W), or None, have one shape."""
    shapes = {what: array.shape for what, array in planes.items() if array is not None}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{what} {_size(shape)}" for what, shape in shapes.items())
        raise DatasetError(f"{path.name}: {said}: sizes must agree")


class _Meaning(NamedTuple):
    """What the labels of a file mean."""

    path: Path
    classes: int | None
    ignore_label: int | None


def _tally(guess: Any, truth: Any, ignored: Any, meaning: _Meaning) -> "Tally":
    import numpy as np

    from unetrt.runtime.cost import MAX_CLASSES
    from unetrt.trainer.evaluation import evaluate_classes, evaluate_instances
    from unetrt.trainer.reading import ignored_label
    from unetrt.trainer.targets import as_instances

    path, classes, asked = meaning
    label = ignored_label(classes, asked)
    if label is not None and (truth == label).any():
        ignored = (truth == label) if ignored is None else ignored | (truth == label)
    guess, known = (plane if ignored is None else np.where(ignored, 0, plane) for plane in (guess, truth))
    if classes is None:
        return evaluate_instances(as_instances(guess), as_instances(known), ignored)
    if not 2 <= classes <= MAX_CLASSES:
        raise OptionError(f"{classes} classes cannot be compared: use 2 to {MAX_CLASSES}, the background counts")
    for what, plane in (("predicted", guess), ("true", known)):
        if plane.max() >= classes:
            raise FrameError(f"{path.name}: class {plane.max()} is {what}, {classes} classes are 0 ... {classes - 1}")
    return evaluate_classes(guess, known, classes, ignored)


def _size(shape: tuple[int, ...]) -> str:
    frames = f"{shape[0]} frames of " if shape[0] > 1 else ""
    return f"{frames}{shape[-2]} x {shape[-1]} px"


def _flat(tally: "Tally") -> dict[str, Any]:
    scores = tally.to_dict()
    precisions = {f"ap{float(threshold) * 100:.0f}": value for threshold, value in scores.pop("ap", {}).items()}
    each = {f"class {index}": value for index, value in enumerate(scores.pop("class_ious", []), 1)}
    return scores | precisions | each


def _each_class(classes: int) -> list[tuple[str, str, str]]:
    return [(f"class {index}", f"class {index}", ".3f") for index in range(1, classes)]


def _shown(score: float | None, kind: str) -> str:
    return "-" if score is None else format(score, kind)
