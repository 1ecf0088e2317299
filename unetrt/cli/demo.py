"""`unetrt demo`: the command; `unetrt.cli._demo` does the work."""

from pathlib import Path

import click

from unetrt.cli import echo, whole
from unetrt.runtime.files.atomic import require_writable

# A number of steps produces the same network on every machine; a number of minutes would not.
STEPS = 500


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all results.")
@click.option("--steps", type=whole(1), default=STEPS, show_default=True, help="Length of the training, in steps.")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Seed of drawings and training.")
def command(out: Path, steps: int, seed: int) -> None:
    """Segment real nuclei with the model that comes with unetrt; then train a network on drawn cells.

    First four images of nuclei are segmented and scored: overlays are in DIR/nuclei. Then touching cells are drawn, a
    network is trained on them and exported, and a large frame is segmented, stitched from tiles, and compared with one
    pass over the whole frame. Needs no data. Exits with 1 if the result is not exact or SEG is below 0.8.
    """
    from unetrt.cli._demo import Demo

    require_writable(out)
    report = Demo(out, steps, seed).run(echo)
    echo(f"report: {out / 'report.json'}\nlook at: {out / 'overlay.png'} and {out / 'curves.png'}")
    echo(f"exact: {report['exactness']['exact']}")
