"""`unetrt eval`."""

import json
from pathlib import Path
from typing import Any

import click

from unetrt.runtime.errors import DatasetError


@click.command("eval")
@click.argument("predicted", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(predicted: Path, labels: Path, as_json: bool) -> None:
    """Score PREDICTED, a folder of instance labels, against LABELS: foreground IoU and the CTC's SEG.

    Every file of LABELS needs one of the same name (without suffix) in PREDICTED. Images without objects have no SEG.
    """
    from unetrt.runtime.images import list_images, read_labels
    from unetrt.trainer.metrics import foreground_iou, seg
    from unetrt.trainer.targets import as_instances

    found = {path.stem: path for path in list_images(predicted)}
    rows: list[dict[str, Any]] = []
    for path in list_images(labels):
        if path.stem not in found:
            raise DatasetError(f"{predicted} has no labels for {path.name}")
        guess, truth = read_labels(found[path.stem]), as_instances(read_labels(path))
        if guess.shape != truth.shape:
            raise DatasetError(f"{path.name}: predicted {guess.shape}, true {truth.shape}: shapes must agree")
        scores = {"iou": foreground_iou(guess, truth), "seg": seg(guess, truth)}
        rows.append({"name": path.stem, **scores, "objects": int(truth.max())})
    mean = {key: _mean([row[key] for row in rows]) for key in ("iou", "seg")}
    if as_json:
        click.echo(json.dumps({"images": rows, "mean": mean}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:24s} IoU {_shown(row['iou'])}  SEG {_shown(row['seg'])}  {row['objects']} objects")
    click.echo(f"mean of {len(rows)} images: foreground IoU {_shown(mean['iou'])}, SEG {_shown(mean['seg'])}")


def _mean(scores: list[float | None]) -> float | None:
    """Return the mean of those that there are."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _shown(score: float | None) -> str:
    return "  -  " if score is None else f"{score:.3f}"
