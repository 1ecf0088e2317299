"""The text of a Triton model configuration (config.pbtxt, ModelConfig in Triton's model_config.proto)."""

import json
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from unetrt.runtime.engines.engine_file import engine_tensors
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import KEY, ModelSpec, Tensor

Engine = Literal["onnxruntime", "tensorrt"]
# The backend's name -> platform and file name, as Triton's documentation of model repositories has them.
FILES: dict[Engine, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
}
Device = Literal["gpu", "cpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16"}

# What a spec says of the weights and not of how they are called: it may differ from version to version.
OF_THE_WEIGHTS = ("precision", "network", "training", "weights_sha256", "written_by")
# Triton's names become folders and parts of URLs.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Serving:
    """How Triton serves a model.

    Attributes
    ----------
    name
        The model's name; empty: that of the model file.
    version
        The version's number; None: the next free one.
    max_batch_size
        Most tiles in one pass, which Triton gathers from waiting requests; 0 serves passes of exactly the batch that
        the file was exported with. None: 8 for an ONNX file, 0 for an engine, whose batch is fixed.
    preferred_batch_sizes
        Batches to gather; Triton's documentation advises against it for most models.
    max_queue_delay_microseconds
        How long a request may wait for others, in microseconds.
    instances
        Copies of the model on each device.
    device
        Where they run.

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
        if min(self.max_batch_size or 0, self.max_queue_delay_microseconds) < 0 or self.instances < 1:
            raise OptionError("batches and delays are 0 or more, and there is at least one instance")
        if self.device not in DEVICES:
            raise OptionError(f"device {self.device!r} is unknown: use one of {', '.join(DEVICES)}")

    def batching(self, engine: Engine) -> int:
        """Return max_batch_size for an engine.

        Raises
        ------
        OptionError
            The engine cannot be served so.
        """
        if engine == "tensorrt" and (self.max_batch_size or self.device != "gpu"):
            raise OptionError("a TensorRT engine runs on a GPU with the batch it was built for: give the ONNX file")
        usual = 8 if engine == "onnxruntime" else 0
        most = usual if self.max_batch_size is None else self.max_batch_size
        if not most and (self.preferred_batch_sizes or self.max_queue_delay_microseconds):
            raise OptionError("without batching nothing is preferred or waited for: use a max_batch_size of 1 or more")
        if wrong := [size for size in self.preferred_batch_sizes if not 1 <= size <= most]:
            raise OptionError(f"preferred batch sizes {wrong} are not within 1 to {most}: raise max_batch_size")
        return most


def contract(name: str, engine: Engine, spec: ModelSpec, batched: bool) -> str:
    """Return the part of a configuration that clients rely on, the same for all versions of a model.

    With batching on, Triton adds the first axis itself (dims without it); without, dims are the whole shape. There is
    no labels file: Triton's are names of an output's single elements, and ours are classes of pixels. The class names
    are in the parameter `unetrt`, a spec as JSON, from which a client can plan its tiles.
    """
    platform, file = FILES[engine]
    first = 1 if batched else 0
    said = replace(spec, batch=1) if batched else spec
    called = {key: value for key, value in json.loads(said.to_json()).items() if key not in OF_THE_WEIGHTS}
    tensors = engine_tensors(spec) if engine == "tensorrt" else spec.tensors()
    return f'name: "{name}"\nplatform: "{platform}"\nbackend: "{engine}"\ndefault_model_filename: "{file}"\n' + "".join(
        [
            *(_tensor(side, tensor, first) for side, tensor in tensors._asdict().items()),
            # JSON in ASCII, quoted once more as JSON, is a string of protobuf's text format.
            f'parameters {{\n  key: "{KEY}"\n  value {{ string_value: {json.dumps(json.dumps(called))} }}\n}}\n',
        ]
    )


def scheduling(serving: Serving, max_batch_size: int) -> str:
    """Return the part of a configuration that an administrator may tune."""
    batcher = ""
    if max_batch_size:
        preferred = ", ".join(str(size) for size in serving.preferred_batch_sizes)
        batcher = "dynamic_batching {\n"
        batcher += f"  preferred_batch_size: [ {preferred} ]\n" if preferred else ""
        batcher += f"  max_queue_delay_microseconds: {serving.max_queue_delay_microseconds}\n}}\n"
    group = f"instance_group [ {{ count: {serving.instances} kind: KIND_{serving.device.upper()} }} ]\n"
    return f"max_batch_size: {max_batch_size}\n{batcher}{group}"


def _tensor(side: str, tensor: Tensor, first: int) -> str:
    dims = ", ".join(str(length) for length in tensor.shape[first:])
    return f'{side} [ {{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype.name]} dims: [ {dims} ] }} ]\n'
