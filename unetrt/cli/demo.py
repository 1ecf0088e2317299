"""`unetrt demo`."""

from pathlib import Path

import click

from unetrt.runtime.files.atomic import require_writable

# Steps, as a number of minutes would leave a worse network on a slower machine.
STEPS = 1000


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything the demo makes.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="How long to train, in steps.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of drawings and training.")
def command(out: Path, steps: int, seed: int) -> None:
    """Draw touching cells, train on them, export, segment a large frame, and check it against one whole-image pass."""
    from unetrt.demo import Demo

    require_writable(out)
    report = Demo(out, steps, seed).run(click.echo)
    click.echo(f"report: {out / 'report.json'}\nlook at: {out / 'overlay.png'} and {out / 'curves.png'}")
    click.echo(f"exact: {report['exactness']['exact']}")
