"""The command `unetrt info`: what a model file, an engine or a checkpoint contains."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MODEL, echo
from unetrt.runtime.errors import LONGEST, ModelFileError, printable

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import ModelSpec


@click.command("info")
@click.argument("model", type=MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path, as_json: bool) -> None:
    """Describe MODEL: an ONNX file, an engine, a checkpoint, or a model that comes with unetrt."""
    about = _reader(model)(model)
    if as_json:
        echo(json.dumps(about, indent=2))
        return
    for name, value in about.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else str(value)
        echo(f"{name:18s} {printable(shown, LONGEST)}")


def _reader(path: Path) -> Callable[[Path], dict[str, Any]]:
    """Return the reader of a file, by its suffix or else by its content."""
    from unetrt.runtime.engines import SUFFIXES
    from unetrt.runtime.model.onnx_file import bundled_advice

    by_name = {".onnx": _of_onnx, ".safetensors": _of_checkpoint, **dict.fromkeys(SUFFIXES, _of_engine)}
    if path.suffix.lower() in by_name:
        return by_name[path.suffix.lower()]
    if path.is_dir():
        return _of_checkpoint
    if not path.is_file():
        raise ModelFileError(
            f"{path} does not exist or is not a regular file: give a model file, an engine or a checkpoint"
            f"{bundled_advice()}"
        )
    return _of_onnx if _holds_a_graph(path) else _of_checkpoint


def _holds_a_graph(path: Path) -> bool:
    from unetrt.runtime.model.onnx_file import read_metadata

    try:
        read_metadata(path)
    except ModelFileError:
        return False
    return True


def _of_onnx(path: Path) -> dict[str, Any]:
    from unetrt.runtime.model.integrity import is_intact
    from unetrt.runtime.model.onnx_file import read_spec

    spec = read_spec(path)
    intact = "yes" if is_intact(path) else "unknown: the file states no SHA-256 of its contents; export it again"
    core, stride = spec.core, [spec.geometry.stride(side) for side in spec.tile]
    fields = {"intact": intact, **json.loads(spec.to_json()), "core": list(core), "stride": stride}
    return {**_warning(spec), **fields}


def _warning(spec: "ModelSpec") -> dict[str, Any]:
    """Return an entry that says what to know before the model is used, if there is something."""
    return {} if spec.approximate is None else {"warning": str(spec.approximate)}


def _of_engine(path: Path) -> dict[str, Any]:
    from unetrt.runtime.engines.engine_file import arguments, misfit_here, read_sidecar
    from unetrt.runtime.machine import this_machine

    sidecar, here = read_sidecar(path), this_machine()
    stored = json.loads(sidecar.to_json())
    facts = {**stored["facts"], "machine": str(sidecar.facts.machine), "options": " ".join(arguments(sidecar.facts))}
    plain = {name: stored[name] for name in ("source", "size")}
    fit = {"fits this machine": misfit_here(path, sidecar, here) or "yes"}
    return {**_warning(sidecar.spec), **fit, **plain, **facts, "spec": stored["spec"]}


def _of_checkpoint(path: Path) -> dict[str, Any]:
    from unetrt.trainer.checkpoint import load

    checkpoint = load(path)
    shape = checkpoint.shape
    return {
        "network": {"depth": shape.depth, "base": shape.base, "channels": shape.channels, "classes": shape.classes},
        "classes": list(checkpoint.class_names),
        "normalisation": checkpoint.normalisation.to_dict(),
        "annotation": checkpoint.annotation,
        "decoding": asdict(checkpoint.decoding),
        "frame_sizes": [list(size) for size in checkpoint.frame_sizes],
        "weights_sha256": checkpoint.weights_sha256(),
        "training": dict(checkpoint.training),
    }
