"""`unetrt eval`: scores of label images, as a table or as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click

from unetrt.cli import echo, label_rule_options, reading_options, whole

if TYPE_CHECKING:
    from unetrt.runtime.files.formats import Reading
    from unetrt.trainer.evaluation import Tally

# Heading, key of the score, format.
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


class Meaning(TypedDict):
    """Options of `unetrt eval` about the meaning of labels; see `trainer.evaluation.LabelFormat` and `LabelRule`."""

    classes: int | None
    ignore_label: int | None
    ignore: Path | None
    masks: bool | None
    threshold: float | None


@click.command("eval")
@click.argument("predicted", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--classes", type=whole(), help="Labels are class indices 0 ... N-1, not instances.")
@click.option("--ignore-label", type=whole(), help="Label of unannotated pixels. [default: 255 with --classes]")
@click.option("--ignore", type=click.Path(path_type=Path), help="Folder of masks whose nonzero pixels are unannotated.")
@label_rule_options
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(predicted: Path, labels: Path, reading: "Reading", as_json: bool, **meaning: Unpack[Meaning]) -> None:
    """Score PREDICTED against LABELS, two folders of label images or two files: each image, and all pooled.

    Instances: foreground IoU, the Cell Tracking Challenge's SEG, average precision TP / (TP + FP + FN) at IoUs of 0.5
    and 0.75 and its mean over 0.5 ... 0.95, pixel error, Rand F-score, warping error, and the numbers of true, found,
    merged and split objects. An object is one number, in however many pieces; no score depends on the numbers. With
    --classes: IoU (mean over classes) and pixel error. Every file of LABELS needs a file of the same name in PREDICTED
    (without suffix; man_seg007 pairs with t007 and mask007, cell_mask with cell). LABELS may be a folder of images with
    their labels, as for `unetrt train`. "-" marks scores that are not defined for an image without objects.
    """
    from unetrt.trainer.evaluation import LabelFormat, compare_files, pooled
    from unetrt.trainer.label_values import LabelDoubts, LabelRule

    classes, rule = meaning["classes"], LabelRule(meaning["masks"], meaning["threshold"])
    doubts, labelled = LabelDoubts(), LabelFormat(classes, meaning["ignore_label"], meaning["ignore"], rule)
    tallies = dict(compare_files(predicted, labels, labelled, reading, doubts))
    for doubt in doubts.sentences():
        echo(f"note: {doubt}", err=True)
    everything = pooled(list(tallies.values()))
    if as_json:
        images = [{"name": name, **tally.to_dict()} for name, tally in tallies.items()]
        echo(json.dumps({"images": images, "pooled": everything.to_dict()}, indent=2))
        return
    columns = INSTANCES if classes is None else (*CLASSES, *_each_class(classes))
    width = max(len(name) for name in (*tallies, "pooled"))
    echo(" " * width + "".join(f"{heading:>11s}" for heading, _, _ in columns))
    for name, tally in (*tallies.items(), ("pooled", everything)):
        scores = _flat(tally)
        echo(f"{name:{width}s}" + "".join(f"{_shown(scores[key], kind):>11s}" for _, key, kind in columns))


def _flat(tally: "Tally") -> dict[str, Any]:
    scores = tally.to_dict()
    precisions = {f"ap{float(threshold) * 100:.0f}": value for threshold, value in scores.pop("ap", {}).items()}
    each = {f"class {index}": value for index, value in enumerate(scores.pop("class_ious", []), 1)}
    return scores | precisions | each


def _each_class(classes: int) -> list[tuple[str, str, str]]:
    return [(f"class {index}", f"class {index}", ".3f") for index in range(1, classes)]


def _shown(score: float | None, kind: str) -> str:
    return "-" if score is None else format(score, kind)
