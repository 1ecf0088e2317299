"""`unetrt eval`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(predicted: Path, labels: Path, classes: int | None, ignore_label: int | None, as_json: bool) -> None:
    """Score PREDICTED against LABELS, two folders of label images, or two files: each image, and all pooled.

    Instances: foreground IoU, the CTC's SEG, average precision at IoUs of 0.5 and 0.75 and its mean over 0.5 ... 0.95
    (TP / (TP + FP + FN)), pixel error, Rand F-score, warping error, and how many objects are merged and split. With
    --classes: IoU (the mean over classes) and pixel error. Every file of LABELS needs one of the same name (without
    suffix) in PREDICTED. "-" is a score that an image without objects does not have.
    """
    from unetrt.trainer.evaluation import pooled

    tallies = dict(_tallies(predicted, labels, classes, ignore_label))
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


def _tallies(predicted: Path, labels: Path, classes: int | None, ignore: int | None) -> Iterator[tuple[str, "Tally"]]:
    """Compare every plane of every file of `labels`; yields its name and tally."""
    from unetrt.runtime.images import list_images, read_label_stack, stem_of

    truths = list_images(labels)
    guesses = {stem_of(path): path for path in list_images(predicted)}
    if predicted.is_file() and labels.is_file():
        guesses = {stem_of(labels): predicted}
    for path in truths:
        if stem_of(path) not in guesses:
            raise DatasetError(f"{predicted} has no labels for {path.name}")
        guess, truth = read_label_stack(guesses[stem_of(path)]), read_label_stack(path)
        if guess.shape != truth.shape:
            raise DatasetError(f"{path.name}: predicted {_size(guess)}, true {_size(truth)}: sizes must agree")
        for index in range(len(truth)):
            name = stem_of(path) if len(truth) == 1 else f"{stem_of(path)}[{index}]"
            yield name, _tally(guess[index], truth[index], classes, ignore, path)


def _tally(guess: Any, truth: Any, classes: int | None, ignore: int | None, path: Path) -> "Tally":
    import numpy as np

    from unetrt.trainer.evaluation import evaluate_classes, evaluate_instances
    from unetrt.trainer.reading import ignored_label
    from unetrt.trainer.targets import as_instances

    ignore = ignored_label(classes, ignore)
    ignored = None if ignore is None else truth == ignore
    known = truth if ignored is None else np.where(ignored, 0, truth)
    if classes is None:
        return evaluate_instances(as_instances(guess), as_instances(known), ignored)
    if classes < 2:
        raise OptionError(f"{classes} classes cannot be compared: use 2 or more, the background counts")
    for what, plane in (("predicted", guess), ("true", known)):
        if plane.max() >= classes:
            raise FrameError(f"{path.name}: class {plane.max()} is {what}, {classes} classes are 0 ... {classes - 1}")
    return evaluate_classes(guess, known, classes, ignored)


def _size(planes: Any) -> str:
    frames = f"{len(planes)} frames of " if len(planes) > 1 else ""
    return f"{frames}{planes.shape[-2]} x {planes.shape[-1]} px"


def _flat(tally: "Tally") -> dict[str, Any]:
    scores = tally.to_dict()
    precisions = {f"ap{float(threshold) * 100:.0f}": value for threshold, value in scores.pop("ap", {}).items()}
    each = {f"class {index}": value for index, value in enumerate(scores.pop("class_ious", []), 1)}
    return scores | precisions | each


def _each_class(classes: int) -> list[tuple[str, str, str]]:
    return [(f"class {index}", f"class {index}", ".3f") for index in range(1, classes)]


def _shown(score: float | None, kind: str) -> str:
    return "-" if score is None else format(score, kind)
