"""The README.md of a bioimage.io package."""

from unetrt.export.packages.bioimageio_metadata import Metadata
from unetrt.runtime.model.spec import ModelSpec

TEXT = """# {name}

{channels} channel(s) in, {classes} out ({head}), computed in {precision}.

## Use

The network takes tiles of exactly {tile[0]} x {tile[1]} px (height x width), one at a time. Its convolutions are
unpadded: the output is the middle {core[0]} x {core[1]} px of the tile, without {halo} px on each side. For a larger
frame, lay tiles at distances that are multiples of {grid} px, at most {stride[0]} px down and {stride[1]} px across,
and mirror the frame's border; the stitched result then equals one pass over the whole frame.

{normalisation}

`unetrt predict` does all this by itself with the file model.onnx, which carries its geometry and normalisation.

## Validation

test_input.npy is a tile of a real frame, test_output.npy what this file gave for it in ONNX Runtime. To judge the model
on your own images, segment some that you have annotated and compare: `unetrt eval LABELS TRUTH`.

Trained: {training}.
"""

WHOLE_FRAME = """Grey values are normalised by statistics of the sample ({mode}). Measure them on the whole frame, not
on each tile: tiles that are normalised on their own disagree where they meet."""
CONSTANT = "Grey values are normalised with constants, the same for every frame."
RAW = "Give raw {dtype} grey values: the network normalises them itself."


def readme(spec: ModelSpec, metadata: Metadata) -> str:
    """Return the text, Markdown."""
    return TEXT.format(
        name=metadata.name,
        channels=spec.channels,
        classes=", ".join(spec.classes),
        head=spec.head,
        precision=spec.precision,
        tile=spec.tile,
        core=spec.core,
        halo=spec.halo,
        grid=spec.grid,
        stride=[spec.geometry.stride(side) for side in spec.tile],
        normalisation=_normalisation(spec),
        training=_training(spec),
    )


def _normalisation(spec: ModelSpec) -> str:
    if spec.takes_raw:
        return RAW.format(dtype=spec.input_dtype)
    if spec.normalisation.mode == "fixed":
        return CONSTANT
    return WHOLE_FRAME.format(mode=spec.normalisation.mode)


def _training(spec: ModelSpec) -> str:
    facts = [f"{key} {value}" for key, value in spec.training.items() if isinstance(value, int | float | str)]
    return ", ".join(facts) or "not said"
