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

    Every file of LABELS needs one of the same name (without suffix) in PREDICTED.
    """
    from unetrt.runtime.images import list_images, read_labels
    from unetrt.trainer.metrics import foreground_iou, seg_scores
    from unetrt.trainer.targets import as_instances

    found = {path.stem: path for path in list_images(predicted)}
    rows: list[dict[str, Any]] = []
    for path in list_images(labels):
        if path.stem not in found:
            raise DatasetError(f"{predicted} has no labels for {path.name}")
        guess, truth = read_labels(found[path.stem]), as_instances(read_labels(path))
        if guess.shape != truth.shape:
            raise DatasetError(f"{path.name}: predicted {guess.shape}, true {truth.shape}: shapes must agree")
        scores = seg_scores(guess, truth)
        seg = float(scores.mean()) if len(scores) else 1.0
        rows.append({"name": path.stem, "iou": foreground_iou(guess, truth), "seg": seg, "objects": len(scores)})
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("iou", "seg")}
    if as_json:
        click.echo(json.dumps({"images": rows, "mean": mean}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:24s} IoU {row['iou']:.3f}  SEG {row['seg']:.3f}  {row['objects']} objects")
    click.echo(f"mean of {len(rows)} images: foreground IoU {mean['iou']:.3f}, SEG {mean['seg']:.3f}")
