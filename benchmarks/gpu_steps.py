"""The steps of the check of a GPU that are not tests: each prints its measurements as JSON as soon as it has them.

    python -m unetrt.benchmarks.gpu_steps STEP

`unetrt.benchmarks.gpu_check` runs each in a separate process. A dry run uses the CPU, a small network and small frames.
"""

import json
import logging
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetrt.benchmarks.gpu_check import DATA, DRY, FOLDER, figures_path
from unetrt.benchmarks.journal import Patience
from unetrt.runtime.errors import one_line

if TYPE_CHECKING:
    from unetrt.trainer.checkpoint import Checkpoint

IS_DRY = os.environ.get(DRY) == "1"
LARGE = (256, 256) if IS_DRY else (2048, 2048)
# Base and depth of the network: the paper's.
BASE, DEPTH = (2, 2) if IS_DRY else (64, 4)
# Largest difference of FP16 logits, relative to the largest logit: above rounding, below the error of a wrong kernel.
LARGEST = 0.05
# Packages whose versions are reported.
PACKAGES = (
    "torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu13-libs", "cuda-bindings", "pycuda", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-ml-py", "edt",
    "unetrt",
)  # fmt: skip


def say(**what: Any) -> None:
    """Print a piece of data."""
    sys.stdout.write(f"{DATA}{json.dumps(what, default=str)}\n")
    sys.stdout.flush()


@contextmanager
def going_on(name: str) -> Iterator[None]:
    """Report an error inside, and continue with the next measurement; the step fails at its end."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - any error: the next measurement still runs
        traceback.print_exc()
        FAILED.append(name)
        say(failed=name, error=one_line(error, 600, kind=True))


FAILED: list[str] = []


def network() -> "Checkpoint":
    """Return the network of all measurements: untrained, with a fixed normalisation."""
    from unetrt.benchmarks.networks import undecided

    return undecided(BASE, DEPTH, fixed=True)


def facts() -> None:
    """Report driver, libraries, versions, GPU, and which backends are usable."""
    import shutil
    import subprocess

    for program, *arguments in (("nvidia-smi",), ("ldconfig", "-p")):
        if path := shutil.which(program):
            output = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=20).stdout
            wanted = [line.strip() for line in output.splitlines() if program != "ldconfig" or "lib/libcu" in line]
            sys.stdout.write("\n".join(wanted[:60]) + "\n")
    from unetrt.benchmarks.environment import versions

    say(versions=versions(PACKAGES), python=sys.version, tools=[name for name in ("nvcc", "g++") if shutil.which(name)])
    import torch

    from unetrt.runtime.cuda.driver import why_not
    from unetrt.runtime.machine import this_machine
    from unetrt.runtime.sessions import BACKENDS

    if torch.cuda.is_available():
        from unetrt.benchmarks.environment import gpu_environment, gpu_state

        device = torch.device("cuda")
        say(environment=gpu_environment(device), state=gpu_state(device), free=torch.cuda.mem_get_info()[0])
    say(cuda=why_not() or "usable", machine=str(this_machine()))
    for backend in BACKENDS:
        if backend.gpu:
            say(backend=backend.name, probe=backend.probe() or "usable")


def kernels() -> None:
    """Load the kernels on this driver, compare `cut` with numpy bit for bit, and time it and the copies."""
    from unetrt.runtime.segment.kernels import NAMES, ptx

    text = ptx().decode()
    say(bytes=len(text), kernels=[name for name in NAMES if f".entry {name}" in text])
    if IS_DRY:
        return
    from unetrt.runtime.cuda.device import CudaDevice
    from unetrt.runtime.cuda.driver import open_driver

    device = CudaDevice(open_driver(0, os.environ))
    with device.current():
        _time_kernels(device)


def _time_kernels(device: Any) -> None:
    import numpy as np

    from unetrt.runtime.cuda.arrays import DeviceArray
    from unetrt.runtime.geometry.plan import TilePlan
    from unetrt.runtime.geometry.unet_shape import UNetShape
    from unetrt.runtime.pixels.normalisation import Affine
    from unetrt.runtime.segment.kernels import Kernels

    geometry = UNetShape(DEPTH).geometry
    side = geometry.side_for(LARGE[0])
    tile = next(iter(TilePlan(LARGE, (side, side), geometry, "reflect")))
    frame = np.random.default_rng(0).integers(0, 65536, (1, *LARGE), dtype=np.uint16)
    affine, driver = Affine.between([(100.0, 60000.0)]), device.driver
    loaded, stream = Kernels(device), device.stream()
    say(loaded=str(device))
    there, slot = device.buffer(frame.nbytes), device.buffer(4 * side * side)
    pinned, back = device.pinned(frame.shape, frame.dtype), device.pinned((1, side, side), np.float32)
    pinned[...] = frame
    source = DeviceArray.packed(there.handle, frame.shape, np.uint16)
    target = DeviceArray.packed(slot.handle, (1, side, side), np.float32)
    runs = {
        "upload": (partial(driver.copy_in, there.handle, pinned.ctypes.data, pinned.nbytes, stream.handle), pinned),
        "cut": (partial(loaded.cut, source, tile, affine, target, stream.handle), back),
        "download": (partial(driver.copy_out, back.ctypes.data, slot.handle, back.nbytes, stream.handle), back),
    }
    for name, (run, moved) in runs.items():
        seconds = _event_seconds(device, stream, run)
        say(run=name, milliseconds=1e3 * seconds, gigabytes_per_second=moved.nbytes / seconds / 1e9)
    expected = np.empty((1, side, side), np.float32)
    tile.cut(frame, expected)
    affine.apply(expected)
    equal = bool((back == expected).all())
    say(cut_is_numpy=equal)
    if not equal:
        FAILED.append("cut")


def _event_seconds(device: Any, stream: Any, run: Callable[[], None]) -> float:
    """Return the median seconds of 20 runs in a stream, by CUDA's events."""
    begin, end = device.event(), device.event()
    seconds: list[float] = []
    for _ in range(20):
        begin.record(stream)
        run()
        end.record(stream)
        stream.synchronize()
        seconds.append(end.since(begin))
    return statistics.median(seconds)


def torch_alone() -> None:
    """Measure the dense product and torch's contenders, which need no engine."""
    import torch

    from unetrt.benchmarks.gpu_case import per_frame
    from unetrt.benchmarks.limits import Matmul
    from unetrt.benchmarks.networks import drawn_frame
    from unetrt.benchmarks.torch_contenders import PlannedTiles, UsualLoop
    from unetrt.export.exporter import Options, spec_for

    device = torch.device("cpu" if IS_DRY else "cuda")
    product = Matmul(device, 64 if IS_DRY else 8192)
    product()
    say(matmul_teraflops=[product.flops / product() / 1e12 for _ in range(3)])
    net = network()
    frame, side = drawn_frame(LARGE, 1), net.shape.geometry.side_for(LARGE[0])
    stack, flops = frame[None], 2 * net.shape.macs(side, side)
    with going_on("eager"):
        loop = UsualLoop(net.network().to(device), net.normalisation)
        per_frame(loop, stack, device)
        milliseconds = [1e3 * per_frame(loop, stack, device) for _ in range(3)]
        say(eager_fp32_ms=milliseconds, tf32_convolutions=torch.backends.cudnn.allow_tf32)
    spec = spec_for(net, Options((side, side)))
    # Compiling for a CPU takes a minute and shows nothing about a GPU.
    for compiled in (False,) if IS_DRY else (False, True):
        with going_on(f"compiled={compiled}"):
            begin = time.perf_counter()
            tiles = PlannedTiles(net.network().to(device), spec, torch.float16, compiled=compiled)
            tiles(frame)
            first = time.perf_counter() - begin
            alone = min(tiles.alone() for _ in range(3))
            rounds = [1e3 * per_frame(tiles, stack, device) for _ in range(3)]
            say(compiled=compiled, first_s=first, alone_ms=1e3 * alone, teraflops=flops / alone / 1e12, frame_ms=rounds)


def ort_load() -> None:
    """Check that the CUDA provider loads without torch, and compare the network in FP16 with the CPU.

    This validates a wheel that was cut down to one architecture.
    """
    import numpy as np
    import onnxruntime as ort

    from unetrt.runtime.sessions import BACKENDS

    (backend,) = (one for one in BACKENDS if one.name == ("onnxruntime" if IS_DRY else "onnxruntime-cuda"))
    say(version=ort.__version__, providers=ort.get_available_providers(), build=ort.get_build_info()[:200])
    reason = backend.probe()
    say(probe=reason or "usable", torch_is_imported="torch" in sys.modules)
    if reason:
        FAILED.append("probe")
    from unetrt.benchmarks.networks import write_model
    from unetrt.export.exporter import Options
    from unetrt.runtime.sessions import open_session

    with tempfile.TemporaryDirectory() as folder:
        model, answers, net = Path(folder) / "model.onnx", {}, network()
        geometry = net.shape.geometry
        side = geometry.side_for(3 * geometry.grid)
        write_model(net, Options((side, side), "fp16", "logits"), model)
        for name in ("onnxruntime", backend.name):
            with going_on(name), open_session(model, name) as session:
                shape = session.spec.tensors().input.shape
                answers[name] = session.run(np.random.default_rng(0).random(shape, np.float32))
                say(session=session.name)
    if len(answers) == len({"onnxruntime", backend.name}):
        expected, given = answers["onnxruntime"], answers[backend.name]
        difference = float(np.abs(expected - given).max())
        say(largest=float(np.abs(expected).max()), largest_difference=difference)
        if not difference <= LARGEST * max(1.0, float(np.abs(expected).max())):
            FAILED.append("the answer")


def ort_variants() -> None:
    """Time a pass with each set of the CUDA provider's options, and profile it by kernel."""
    import numpy as np

    from unetrt.benchmarks.networks import write_model
    from unetrt.export.exporter import Options
    from unetrt.runtime.sessions.onnxruntime_libraries import load_libraries
    from unetrt.runtime.sessions.onnxruntime_options import SETS, base

    if not IS_DRY:
        say(libraries=load_libraries() or "load")
    net = network()
    side = net.shape.geometry.side_for(LARGE[0])
    flops = 2 * net.shape.macs(side, side)
    frame = np.random.default_rng(0).integers(0, 65536, (1, 1, side, side), dtype=np.uint16)
    # Without TF32 too, to see its cost: ONNX Runtime then does not use tensor cores for FP16 either.
    variants = {name: {**base("fp16"), **extra} for name, extra in SETS.items()}
    variants["plain, no TF32"] = {**base("fp16"), "use_tf32": "0"}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        begin = time.perf_counter()
        write_model(net, Options((side, side), "fp16", "labels", 1, "uint16"), model)
        say(export_s=time.perf_counter() - begin, tile=side)
        for name, settings in variants.items():
            with going_on(name):
                _time_variant(name, settings, model, frame, flops)


def _time_variant(name: str, settings: dict[str, str], model: Path, frame: Any, flops: int) -> None:
    import onnxruntime as ort

    from unetrt.benchmarks.gpu_profile import profiled

    options = ort.SessionOptions()
    provider: Any = "CPUExecutionProvider"
    if not IS_DRY:
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = ("CUDAExecutionProvider", settings)
    begin = time.perf_counter()
    session = ort.InferenceSession(str(model), options, providers=[provider], enable_fallback=0)
    loaded, place = time.perf_counter() - begin, "cpu" if IS_DRY else "cuda"
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(frame, place, 0))
    binding.bind_output(session.get_outputs()[0].name, place)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    seconds = []
    for _ in range(3 if IS_DRY else 12):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    best = statistics.median(seconds[2:])
    say(variant=name, load_s=loaded, first_ms=1e3 * seconds[0], pass_ms=1e3 * best, teraflops=flops / best / 1e12)
    say(variant=name, kernels=profiled(run))


def goals(step: str, backend: str) -> None:
    """Measure the goals with one engine, as `unetrt bench --goals` does, in one round with up to two lanes."""
    from dataclasses import replace

    import torch

    from unetrt.benchmarks import gpu_case
    from unetrt.benchmarks.gpu_goals import lines

    def show(case: dict[str, Any]) -> None:
        sys.stdout.write("\n".join([case["case"], *lines(case), ""]))
        say(case=case["case"], fastest=case["fastest"], verdicts=case["verdicts"], session=case["session"])

    path, patience = _place(step), Patience(seconds=None, resume=True)
    if IS_DRY:
        with tempfile.TemporaryDirectory() as folder:
            device, small = torch.device("cpu"), {"backends": ("onnxruntime",), "compiled": False, "side": 64}
            bench = gpu_case.GoalsBench(network(), device, Path(folder), 1, 2, **small)  # type: ignore[arg-type]
            cases = [gpu_case.GoalCase((96, 130), "uint16", (1, 2), frames=2)]
            result = gpu_case.measured(bench, cases, show, path, patience)
    else:
        cases = [replace(case, lanes=case.lanes[:2]) for case in gpu_case.CASES]
        result = gpu_case.goals(BASE, DEPTH, 1, (backend,), show, cases=cases, path=path, patience=patience)
    for name, reason in result["failed"].items():
        FAILED.append(name)
        say(failed=name, error=reason)


def rtx_attempts() -> None:
    """Report how far engines of TensorRT for RTX get on this device; without a GPU they are built and refused."""
    from unetrt.benchmarks import rtx_attempts as attempts
    from unetrt.runtime.machine import this_machine

    machine = this_machine()
    if reason := attempts.RTX.probe(machine):
        say(not_tried=reason)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        attempts.write_model(model)
        path = attempts.result_path(Path(os.environ.get(FOLDER, folder)), machine)
        for outcome in attempts.attempts(path, model, machine, attempts.RTX.version, Patience(resume=True)).values():
            say(**asdict(outcome))


def contenders() -> None:
    """Time unetrt beside torch and MONAI in one round, as `unetrt bench --device gpu` does."""
    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.networks import undecided

    only = ("onnxruntime",) if IS_DRY else ()
    bench = Bench(
        undecided(BASE, DEPTH), LARGE, 1, "cpu" if IS_DRY else "gpu", only=only, sides=(64,) if IS_DRY else ()
    )
    result = bench.measure(lambda step: print(step, flush=True), _place("contenders"), Patience(resume=True))  # noqa: T201
    if result is None:
        FAILED.append("contenders")
        return
    for one in result.contenders:
        say(contender=one.name, seconds=one.seconds["frame to labels"].median, speedup=one.speedup.median)
    for other in result.left_out:
        say(left_out=other.name, reason=other.reason)


def training_speed() -> None:
    """Time training steps, as `unetrt bench --training` does."""
    from unetrt.benchmarks.cases import measure
    from unetrt.benchmarks.training_cases import WAYS, TrainingSteps
    from unetrt.trainer.recipe import RECIPES

    recipe, ways = RECIPES["paper"].with_options(depth=DEPTH, base=BASE), tuple(WAYS)
    if IS_DRY:
        recipe, ways = recipe.with_options(tile=60), ways[:1]
    for number, way in enumerate(ways):  # a way that fails, such as the compiled one, costs no other
        with going_on(way):
            case = TrainingSteps(recipe, 2 if IS_DRY else 20, ways[: number + 1])
            figure = measure(case, 1, _place("training-speed"), Patience(resume=True)).detail["ways"][way]
            say(way=way, dtype=figure["dtype"], seconds=figure["seconds"]["median"], waiting=figure["waiting"])


def _place(step: str) -> Path | None:
    """Return the file in which a step stores its figures one by one, and from which it continues."""
    folder = os.environ.get(FOLDER)
    return figures_path(Path(folder), step, IS_DRY) if folder else None


FUNCTIONS: dict[str, Callable[[], None]] = {
    "facts": facts,
    "ptx": kernels,
    "torch": torch_alone,
    "ort-load": ort_load,
    "ort-variants": ort_variants,
    "ort-goals": partial(goals, "ort-goals", "onnxruntime-cuda"),
    "trt-goals": partial(goals, "trt-goals", "tensorrt"),
    "rtx-attempts": rtx_attempts,
    "contenders": contenders,
    "training-speed": training_speed,
}


def main(step: str) -> int:
    """Run a step; return its exit status, 1 where something in it failed."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    FUNCTIONS[step]()
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
