"""A model in a repository of NVIDIA's Triton inference server: REPOSITORY/NAME/config.pbtxt and NAME/1/model.onnx.

Triton's onnxruntime backend batches requests only over a first axis of free length (CompareDimsSupported in its
onnxruntime_utils.cc), so the served copy of the graph gets one. An engine keeps its batch and is not batched.
"""

import shutil
from pathlib import Path

import onnx

from unetrt.export.packages.batch_axis import copy_model, with_batch
from unetrt.export.packages.triton_config import FILES, Engine, Serving, contract, scheduling
from unetrt.runtime.engines.engine_file import read_sidecar
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.errors import ModelFileError, OptionError, OutputError
from unetrt.runtime.files.atomic import whole_folder
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec

__all__ = ["Serving", "write"]

ENGINE_SUFFIXES = (".engine", ".plan")
CONFIG = "config.pbtxt"


def write(model: Path, repository: Path, serving: Serving | None = None, spec: ModelSpec | None = None) -> Path:
    """Add a model to a Triton model repository, or a version to a model that is there.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote, or a TensorRT engine (.engine, .plan).
    repository
        Triton's --model-repository; created if need be.
    serving
        How it is served. For a further version name, device and batching are those of the configuration in place.
    spec
        What the engine was built from; without, its sidecar says it, and an ONNX file says it itself.

    Returns
    -------
    The folder of the version. It appears whole; on any error nothing is left behind.

    Raises
    ------
    ModelFileError
        The file is not a model of ours, or Triton cannot serve it.
    OptionError
        It cannot be served so, or the model in place is called differently.
    OutputError
        The version exists, or the repository cannot be written to.
    """
    serving = serving or Serving()
    engine: Engine = "tensorrt" if model.suffix in ENGINE_SUFFIXES else "onnxruntime"
    spec = _spec(model, engine, spec)
    most = serving.batching(engine)
    name = serving.name or Serving(name=model.stem).name
    if (repository / CONFIG).exists():
        raise OutputError(f"{repository} is the folder of one model: give the repository above it")
    promised = contract(name, engine, spec, batched=most > 0)
    if (repository / name).is_dir():
        target = _next_version(repository / name, serving.version, promised)
        with whole_folder(target) as inside:
            _write_model(model, inside, engine, free=most > 0)
        return target
    version = serving.version or 1
    with whole_folder(repository / name) as folder:
        (folder / CONFIG).write_text(promised + scheduling(serving, most), encoding="ascii")
        (folder / str(version)).mkdir()
        _write_model(model, folder / str(version), engine, free=most > 0)
    return repository / name / str(version)


def _spec(model: Path, engine: Engine, spec: ModelSpec | None) -> ModelSpec:
    if engine == "onnxruntime":
        return read_spec(model)
    if not model.is_file():
        raise ModelFileError(f"{model} does not exist: build the engine first, or give the ONNX file")
    if spec is not None:
        return spec
    sidecar = read_sidecar(model)
    if sidecar.facts.flavour != "tensorrt":
        title = named_flavour(sidecar.facts.flavour).title
        raise OptionError(f"Triton loads engines of TensorRT, and {model} is one of {title}: give the ONNX file")
    return sidecar.spec


def _next_version(folder: Path, version: int | None, promised: str) -> Path:
    """Return the folder of a further version of a model that is called as `promised`."""
    taken = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    following = max(taken, default=0) + 1
    target = folder / str(version or following)
    if target.exists():
        raise OutputError(f"{target} exists, and Triton may be serving it: use version {following}, or none to get it")
    config = folder / CONFIG
    if not config.is_file() or promised not in config.read_text(encoding="utf-8"):
        raise OptionError(
            f"{folder} is not called as this model is (tile, channels, classes, normalisation, head or batching differ,"
            f" or its {CONFIG} is not ours): give another name"
        )
    return target


def _write_model(model: Path, folder: Path, engine: Engine, free: bool) -> None:
    file = folder / FILES[engine][1]
    if free:
        onnx.save(with_batch(model, None), file)
    elif engine == "onnxruntime":
        copy_model(model, file)
    else:
        shutil.copyfile(model, file)
