"""A model in a repository of NVIDIA's Triton inference server: REPOSITORY/NAME/config.pbtxt and NAME/1/model.onnx.

Triton's onnxruntime backend batches requests only over a free first axis (CompareDimsSupported in its
onnxruntime_utils.cc), so the served copy of an ONNX file gets one. An engine keeps its batch and is not batched. The
configuration (ModelConfig in Triton's model_config.proto) has two parts: the `_interface` that clients rely on, which
is the same in all versions of a model, and the `_scheduling` that an administrator may tune.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from unetrt.export.onnx_model import copy_file, save, with_batch
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.engines.engine_file import engine_tensors, read_sidecar
from unetrt.runtime.engines.flavours import named_flavour
from unetrt.runtime.errors import ModelFileError, OptionError, OutputError
from unetrt.runtime.files.atomic import whole_folder
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import KEY, ModelSpec

__all__ = ["Serving", "write"]

Engine = Literal["onnxruntime", "tensorrt"]
# Backend -> platform and file name, from Triton's documentation of model repositories.
FILES: dict[Engine, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
}
CONFIG = "config.pbtxt"
Device = Literal["gpu", "cpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16"}
# max_batch_size of an ONNX file unless chosen.
USUAL_BATCH = 8
# Fields of a spec that describe the weights and not the interface: they may differ from version to version.
OF_THE_WEIGHTS = ("precision", "network", "training", "weights_sha256", "written_by", "verification")
# A model's name becomes a folder and a part of URLs.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Serving:
    """Options of a served model.

    Attributes
    ----------
    name
        The model's name; empty for that of the model file.
    version
        The version's number; None for the next free one.
    max_batch_size
        Most tiles in one pass, which Triton gathers from waiting requests; 0 serves passes of exactly the batch of the
        file. None: 8 for an ONNX file, 0 for an engine, whose batch is fixed.
    preferred_batch_sizes
        Batches to gather; Triton's documentation advises against it for most models.
    max_queue_delay_microseconds
        How long a request may wait for others, in microseconds.
    instances
        Copies of the model on each device.
    device
        Where they run: `gpu` or `cpu`.

    Raises
    ------
    OptionError
        A number or a name that Triton would refuse.
    """

    name: str = ""
    version: int | None = None
    max_batch_size: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    instances: int = 1
    device: Device = "gpu"

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise OptionError(f"the name {self.name!r} does not fit: use letters, digits, and _ . - after the first")
        if self.version is not None and self.version < 1:
            raise OptionError(f"version {self.version} is ignored by Triton: use 1 or more")
        for option, value, least in (
            ("max_batch_size", self.max_batch_size or 0, 0),
            ("max_queue_delay_microseconds", self.max_queue_delay_microseconds, 0),
            ("instances", self.instances, 1),
        ):
            if value < least:
                raise OptionError(f"{option} must be {least} or more (got {value})")
        if self.device not in DEVICES:
            raise OptionError(f"device {self.device!r} is unknown: use one of {', '.join(DEVICES)}")

    def batching(self, engine: Engine) -> int:
        """Return the max_batch_size on a backend; raises OptionError where the backend does not support the options."""
        if engine == "tensorrt" and (self.max_batch_size or self.device != "gpu"):
            raise OptionError("a TensorRT engine runs on a GPU with the batch it was built for: give the ONNX file")
        usual = USUAL_BATCH if engine == "onnxruntime" else 0
        most = usual if self.max_batch_size is None else self.max_batch_size
        if not most and (self.preferred_batch_sizes or self.max_queue_delay_microseconds):
            raise OptionError("preferred sizes and a queue delay need batching: use a max_batch_size of 1 or more")
        if wrong := [size for size in self.preferred_batch_sizes if not 1 <= size <= most]:
            raise OptionError(f"preferred batch sizes {wrong} are not within 1 to {most}: raise max_batch_size")
        return most


def write(model: Path, repository: Path, serving: Serving | None = None, spec: ModelSpec | None = None) -> Path:
    """Add a model to a Triton model repository, or a version to a model in it.

    Parameters
    ----------
    model
        An ONNX file that `unetrt export` wrote, or a TensorRT engine (.engine, .plan).
    repository
        Triton's --model-repository; created if it does not exist.
    serving
        Options. A further version keeps the device and batching of the existing configuration.
    spec
        Spec of an engine; None reads it from the engine's sidecar. An ONNX file contains its spec.

    Returns
    -------
    The folder of the version, which appears complete. On an error nothing is left behind.

    Raises
    ------
    ModelFileError
        The file is not a model of unetrt, or Triton cannot serve it.
    OptionError
        The options do not fit the backend, or the model in the repository has another interface.
    OutputError
        The version exists, or the repository cannot be written to.
    """
    serving = serving or Serving()
    engine: Engine = "tensorrt" if model.suffix in SUFFIXES else "onnxruntime"
    spec = _spec(model, engine, spec)
    most = serving.batching(engine)
    name = serving.name or Serving(name=model.stem).name
    if (repository / CONFIG).exists():
        raise OutputError(f"{repository} is the folder of one model: give the repository above it")
    interface = _interface(name, engine, spec, batched=most > 0)
    if (repository / name).is_dir():
        target = _next_version(repository / name, serving.version, interface)
        with whole_folder(target) as inside:
            _write_model(model, inside, engine, free=most > 0)
        return target
    version = serving.version or 1
    with whole_folder(repository / name) as folder:
        (folder / CONFIG).write_text(interface + _scheduling(serving, most), encoding="ascii")
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


def _next_version(folder: Path, version: int | None, interface: str) -> Path:
    """Return the folder of a further version of a model, which must have this interface."""
    taken = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    following = max(taken, default=0) + 1
    target = folder / str(version or following)
    if target.exists():
        raise OutputError(f"{target} exists, and Triton may be serving it: use version {following}, or none to get it")
    config = folder / CONFIG
    if not config.is_file() or interface not in config.read_text(encoding="utf-8"):
        raise OptionError(
            f"the interface of {folder} is not that of this model (tile, channels, classes, normalisation, head or "
            f"batching differ, or its {CONFIG} was not written by unetrt): give another name"
        )
    return target


def _write_model(model: Path, folder: Path, engine: Engine, free: bool) -> None:
    """Write the served file; `free` gives an ONNX file a free batch axis."""
    file = folder / FILES[engine][1]
    if free:
        save(with_batch(model, None), file)
    elif engine == "onnxruntime":
        copy_file(model, file)
    else:
        shutil.copyfile(model, file)


def _interface(name: str, engine: Engine, spec: ModelSpec, batched: bool) -> str:
    """Return the part of a configuration that clients rely on, the same for all versions of a model.

    With batching Triton adds the first axis itself, so dims are given without it; otherwise dims are the whole shape.
    There is no labels file: Triton's labels name single elements of an output, while a class is the value of a pixel.
    The class names are in the parameter `unetrt`, a spec as JSON, from which a client can plan its tiles.
    """
    platform, file = FILES[engine]
    described = json.loads((replace(spec, batch=1) if batched else spec).to_json())
    parameter = json.dumps({key: value for key, value in described.items() if key not in OF_THE_WEIGHTS})
    ends = engine_tensors(spec) if engine == "tensorrt" else spec.tensors()
    lines = [
        f'name: "{name}"',
        f'platform: "{platform}"',
        f'backend: "{engine}"',
        f'default_model_filename: "{file}"',
    ]
    for side, (end, shape, dtype) in zip(("input", "output"), ends, strict=True):
        dims = ", ".join(str(length) for length in shape[1 if batched else 0 :])
        lines.append(f'{side} [ {{ name: "{end}" data_type: {TYPES[dtype.name]} dims: [ {dims} ] }} ]')
    # JSON in ASCII, quoted once more as JSON, is a string of protobuf's text format.
    lines.append(f'parameters {{\n  key: "{KEY}"\n  value {{ string_value: {json.dumps(parameter)} }}\n}}\n')
    return "\n".join(lines)


def _scheduling(serving: Serving, max_batch_size: int) -> str:
    """Return the part of a configuration that an administrator may tune."""
    batcher = ""
    if max_batch_size:
        preferred = ", ".join(str(size) for size in serving.preferred_batch_sizes)
        batcher = "dynamic_batching {\n"
        batcher += f"  preferred_batch_size: [ {preferred} ]\n" if preferred else ""
        batcher += f"  max_queue_delay_microseconds: {serving.max_queue_delay_microseconds}\n}}\n"
    group = f"instance_group [ {{ count: {serving.instances} kind: KIND_{serving.device.upper()} }} ]\n"
    return f"max_batch_size: {max_batch_size}\n{batcher}{group}"
