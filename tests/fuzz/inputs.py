"""What the fuzzer feeds to the commands: mutated files and options, which follow from a seed and a number.

`write_originals` writes whole files once. `case` mutates one of them into a folder, and returns the arguments of a
command that reads it. Mutations are those of model files (`mutations`) for bytes, and `swapped` for JSON.
"""

import json
import random
import re
import shutil
from copy import deepcopy
from pathlib import Path
from xml.sax.saxutils import escape
from zlib import crc32

import click
import numpy as np
import onnx
import tifffile
from PIL import Image

from tests.conftest import small_spec, train
from tests.runtime import acquisitions
from tests.runtime.engines.machines import FACTS, SPEC
from tests.runtime.model_files.mutations import ANYWHERE, change_digit, mutant, truncate
from tests.runtime.model_files.small_models import branch, branching, weights
from unetrt.cli import cli
from unetrt.export.graph import build_graph
from unetrt.runtime.files.outputs import KINDS as OUTPUTS
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.integrity import DIGEST
from unetrt.runtime.model.spec import KEY
from unetrt.trainer.unet import UNet

CONTROLS = ("crash", "hang", "traceback", "memory", "message")

# JSON values of every type, and sizes that nobody expects.
VALUES = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**53 + 1, 2**63, 2**64,
    10**400, -(10**400), "", " ", "0", "1", "a", "\x1b[31m", "\0", "\ud800", "é\u202e", "../../x", "/dev/zero",
    "x" * 100_000, [], [0], [[]], {}, {"": 0}, [1, 2], [1, 2, 3], [-1, -1], [2**31, 2**31], ["a", "a"],
    list(range(5000)),
)  # fmt: skip
TEXTS = (
    "nan", "inf", "-1", "0", "1", "5", "1e308", "9" * 400, "9" * 5000, "", " ", "x" * 100_000, "\x1b[31m", "é", "a,b",
    "572", "60x76", "1x", "8GiB", "1e9GiB", "auto", "cpu", "8.9", "1=2", "fixed:0:1", "../x", "/dev/null", ".",
)  # fmt: skip
TILES = ("model", "model", "auto", "planned")
ADOPTED = ("-o", "new.onnx", "--normalisation", "zscore", "--classes", "a,b", "--head", "logits")


def write_originals(folder):
    """Write the whole files: models, images of each format, a run with its checkpoints, sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 4000, (40, 48)).astype(np.uint16)
    subgraph = branching(branch(weights(name="a"), "bright_scores"), branch(weights(name="b"), "dark_scores"))
    (folder / "subgraph.onnx").write_bytes(subgraph.SerializeToString())
    geometry = Geometry.unet(1)
    tile = (geometry.side_for(22), geometry.side_for(30))
    for name, spec in (("unet.onnx", {"network": {"depth": 1, "base": 2}}), ("foreign.onnx", None)):
        model = build_graph(UNet(UNetShape(1, 2)), small_spec(1, tile, **(spec or {})))
        if spec is None:
            onnx.helper.set_model_props(model, {})
        (folder / name).write_bytes(model.SerializeToString())
    _write_images(folder, frame)
    for part in ("images", "labels"):
        (folder / "data" / part).mkdir(parents=True)
    for number in range(3):
        tifffile.imwrite(folder / "data" / "images" / f"{number}.tif", np.tile(frame, (2, 2)))
        tifffile.imwrite(folder / "data" / "labels" / f"{number}.tif", np.tile(frame > 2000, (2, 2)).astype(np.uint8))
    train(folder / "data", folder / "run", steps=2)
    for name in ("best.safetensors", "last.safetensors"):
        _forget_digest(folder / "run" / name)
    _write_sidecars(folder)


def _forget_digest(path):
    """Remove the digest of a checkpoint, by which every damaged one would be refused before it is looked at."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"][DIGEST]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def _write_images(folder, frame):
    tifffile.imwrite(folder / "plain.tif", frame)
    tifffile.imwrite(folder / "tiles.tif", np.tile(frame, (2, 2)), tile=(16, 16), compression="zlib", predictor=True)
    tifffile.imwrite(folder / "stack.ome.tif", np.stack([frame, frame]), metadata={"axes": "TYX"})
    tifffile.imwrite(folder / "imagej.tif", np.stack([frame, frame]), imagej=True)
    tifffile.imwrite(folder / "lzw.tif", frame.astype(np.float32), compression="lzw")
    acquisitions.write_series(folder / "fields.ome.tif")
    acquisitions.write_frames(folder / "set", 3)
    planes = [(field, time, 0, 0) for field in range(2) for time in range(2)]
    acquisitions.write_stack(folder / "a_MMStack.tif", planes, {"MicroManagerVersion": "2", "Frames": 2})
    grey = (frame // 16).astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(frame).save(folder / "deep.png")
    Image.fromarray(grey).convert("P").save(folder / "palette.png")
    for kind in ("jpg", "bmp", "gif"):
        Image.fromarray(grey).save(folder / f"grey.{kind}")
    np.save(folder / "plain.npy", frame)
    np.save(folder / "fortran.npy", np.asfortranarray(frame.astype(np.float64)))
    import zarr

    for version in (2, 3):
        array = zarr.create_array(folder / f"plain{version}.zarr", shape=frame.shape, chunks=(16, 16), dtype="uint16",
                                  zarr_format=version)  # fmt: skip
        array[...] = frame
    group = zarr.open_group(folder / "image.ome.zarr", mode="w", zarr_format=3)
    group.create_array("0", shape=frame.shape, chunks=(40, 48), dtype="uint16")[...] = frame
    axes = [{"name": name, "type": "space"} for name in "yx"]
    image = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    group.attrs["ome"] = image
    plate = zarr.open_group(folder / "plate.zarr", mode="w", zarr_format=3)
    plate.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
    plate.create_group("A/1", attributes={"ome": {"version": "0.5", "well": {"images": [{"path": "0"}]}}})
    field = plate.create_group("A/1/0", attributes={"ome": image})
    field.create_array("0", shape=frame.shape, chunks=(40, 48), dtype="uint16")[...] = frame


def _write_sidecars(folder):
    from unetrt.runtime.engines.engine_file import write_engine

    write_engine(folder / "model.engine", b"a plan", FACTS, SPEC, Path("model.onnx"))
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    shutil.copy(results / "cpu-512.json", folder / "bench.json")


def swapped(rng, document, times=1):
    """Return a JSON document with values, keys or whole parts exchanged, dropped, doubled or nested."""
    for _ in range(times):
        places = list(_places(document))
        if not places:
            return deepcopy(rng.choice(VALUES))
        parent, key = rng.choice(places)
        other, there = rng.choice(places)
        match rng.randrange(24):
            case 0 | 1:
                del parent[key]
            case 2 | 3 | 4:
                parent[key] = json.loads(json.dumps(other[there]))
            case 5 if isinstance(parent, dict):
                parent[rng.choice(["", "\x1b[31m", "\ud800", key + " ", "x" * 100_000])] = deepcopy(parent[key])
            case 6:
                parent[key] = "NESTED"
            case 7 | 8 | 9 | 10 if isinstance(parent[key], int | float):
                parent[key] = rng.choice((parent[key] + 1, parent[key] * 1000, -parent[key], parent[key] // 3))
            case _:
                parent[key] = deepcopy(rng.choice(VALUES))  # else a later change could put a value into itself
    return document


def _places(document):
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def swapped_text(rng, text):
    """Return the text of a JSON document after `swapped`, now and then with damaged bytes as well."""
    document = swapped(rng, json.loads(text), rng.choice((1, 1, 1, 2, 5)))
    new = json.dumps(document).replace('"NESTED"', rng.choice(('{"a":' * 3000 + "0" + "}" * 3000, "[" * 100_000)))
    if rng.random() < 0.1:
        new = bytes(damaged(rng, new.encode())).decode("utf-8", "replace")
    return new


def damaged(rng, data, other=b""):
    """Return bytes with one to three damages, or the begin of the one and the end of another file."""
    changed = bytearray(data)
    if other and rng.random() < 0.15:
        return bytes(changed[: rng.randrange(len(changed))] + other[rng.randrange(len(other)) :])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.4:
            _change_header(rng, changed)
        elif kind < 0.6:
            _overwrite_number(rng, changed)
        else:
            rng.choice((*ANYWHERE, truncate))(rng, changed or bytearray(b"0"))
    return bytes(changed)


def _change_header(rng, data):
    """Change one entry of a TIFF's first directory, the size in a PNG, or a digit, so that the file stays readable."""
    if data[:4] == b"II*\0":
        begin = int.from_bytes(data[4:8], "little")
        entry = begin + 2 + 12 * rng.randrange(max(1, int.from_bytes(data[begin : begin + 2], "little")))
        at, size = rng.choice(((2, 2), (4, 4), (8, 4), (8, 4), (8, 2)))  # type, count, value
        number = rng.choice((0, 1, 2, 3, 8, 17, 32, 50_000, 65_535, 2**31 - 1, 2**32 - 1)) % (1 << (8 * size))
        data[entry + at : entry + at + size] = number.to_bytes(size, "little")
    elif data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 33:
        at, size = rng.choice(((16, 4), (20, 4), (24, 1), (25, 1), (28, 1)))  # width, height, depth, colours, interlace
        number = rng.choice((0, 1, 2, 3, 4, 16, 41, 50_000, 2**31 - 1, 2**32 - 1)) % (1 << (8 * size))
        data[at : at + size] = number.to_bytes(size, "big")
        data[29:33] = crc32(data[12:29]).to_bytes(4, "big")
    else:
        change_digit(rng, data)


def _overwrite_number(rng, data):
    """Overwrite two to eight bytes by an edge of a number of this size, mostly in the header."""
    size = rng.choice((2, 4, 8))
    at = rng.randrange(max(1, min(len(data), rng.choice((64, 512, len(data) or 1)))))
    number = rng.choice((0, 1, 0xFF, (1 << (8 * size - 1)) - 1, 1 << (8 * size - 1), (1 << (8 * size)) - 1))
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def model_case(rng, originals, folder):
    name = rng.choice(("unet.onnx", "unet.onnx", "subgraph.onnx", "foreign.onnx"))
    data = (originals / name).read_bytes()
    if name != "foreign.onnx" and rng.random() < 0.4:
        model = onnx.load_from_string(data)
        spec = swapped_text(rng, model.metadata_props[0].value)
        onnx.helper.set_model_props(model, {KEY: spec.encode("utf-8", "replace").decode()})
        data = model.SerializeToString()
    else:
        data = mutant(data, rng.randrange(1 << 30))
    (folder / "m.onnx").write_bytes(data)
    if name == "foreign.onnx":
        return ["adopt", "m.onnx", *ADOPTED]
    predict = ["predict", "m.onnx", str(originals / "plain.tif"), "-o", "out", "--tile", rng.choice(TILES)]
    return rng.choice((
        [*predict, "--backend", "onnxruntime"], [*predict, "--backend", "openvino"], [*predict, "--backend", "auto"],
        ["info", "m.onnx"], ["retile", "m.onnx", "-o", "new.onnx", "--frame", "64"], ["plan", "9", "--model", "m.onnx"],
        ["package", "m.onnx", "triton", "-o", "repository"], ["train", "none", "--from", "m.onnx", "-o", "run"],
    ))  # fmt: skip


IMAGES = ("plain.tif", "tiles.tif", "stack.ome.tif", "imagej.tif", "lzw.tif", "grey.png", "deep.png", "palette.png",
          "grey.jpg", "grey.bmp", "grey.gif", "plain.npy", "fortran.npy", "plain2.zarr", "plain3.zarr",
          "image.ome.zarr", "plate.zarr", "fields.ome.tif", "a_MMStack.tif", "set")  # fmt: skip


# All kinds of files that are written from labels.
SAVED = [argument for kind in OUTPUTS for argument in ("--save", kind)]


def lying_ome(rng, original, path):
    """Write a copy of an OME-TIFF with another value in one or two attributes of its OME-XML."""
    with tifffile.TiffFile(original) as tiff:
        text, pages = tiff.pages.first.description, [page.asarray() for page in tiff.pages]
    for _ in range(rng.choice((1, 1, 2))):
        found = rng.choice(list(re.finditer(r'"([^"]*)"', text)))
        other = rng.choice([*TEXTS, "2", "3", "-0", "XYTCZ", *re.findall(r'"([^"]*)"', text)])
        text = f"{text[: found.start(1)]}{escape(other)}{text[found.end(1) :]}"
    acquisitions.write_pages(path, pages, text)


def image_case(rng, originals, folder):
    original, other = rng.choice(IMAGES), rng.choice(IMAGES)
    name = original
    if (originals / name).is_dir():
        shutil.copytree(originals / name, folder / name)
        file = rng.choice(sorted(path for path in (folder / name).rglob("*") if path.is_file()))
        if name == "set" and rng.random() < 0.5:
            lying_ome(rng, originals / name / file.name, file)
        elif file.suffix == ".json" or file.name.startswith(".z"):
            file.write_text(swapped_text(rng, file.read_text()), encoding="utf-8", errors="replace")
        else:
            file.write_bytes(damaged(rng, file.read_bytes()))
    elif name.endswith(".ome.tif") and rng.random() < 0.5:
        lying_ome(rng, originals / name, folder / name)
    else:
        splice = b"" if (originals / other).is_dir() else (originals / other).read_bytes()
        suffix = Path(other).suffix if rng.random() < 0.05 else ""
        name = name + suffix
        (folder / name).write_bytes(damaged(rng, (originals / name.removesuffix(suffix)).read_bytes(), splice))
    predict = ["predict", str(originals / "unet.onnx"), name, "-o", "out", "--backend", "onnxruntime"]
    return rng.choice((
        [*predict, "--tile", rng.choice(TILES)], [*predict, "--tile", "model", "--table", "--as", "instances"],
        ["eval", name, str(originals / original)], ["eval", str(originals / original), name],
        ["convert", name, "-o", "out", *SAVED, "--overlays", "--montage"],
        ["convert", name, str(originals / original), "-o", "out", *SAVED],
    ))  # fmt: skip


def checkpoint_case(rng, originals, folder):
    name = rng.choice(("best.safetensors", "last.safetensors"))
    data = (originals / "run" / name).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.6:
        header = json.loads(data[8 : 8 + size])
        if rng.random() < 0.8:
            about = header["__metadata__"]
            about[KEY] = swapped_text(rng, about[KEY]).encode("utf-8", "replace").decode()
            text = json.dumps(header)
        else:
            text = swapped_text(rng, json.dumps(header))
        text = text.encode("utf-8", "replace")
        data = len(text).to_bytes(8, "little") + text + data[8 + size :]
    else:
        data = damaged(rng, data)
    (folder / "run").mkdir()
    (folder / "run" / name).write_bytes(data)
    path = f"run/{name}"
    if name == "last.safetensors":
        return rng.choice((["train", "none", "--resume", "run"], ["info", path]))
    return rng.choice((
        ["info", path], ["plan", "64", "--model", path], ["train", "none", "--from", path, "-o", "new"],
        ["export", path, "-o", "new.onnx", "--tile", "44"],
    ))  # fmt: skip


def sidecar_case(rng, originals, folder):
    kind = rng.choice(("engine", "bench", "cache"))
    if kind == "bench":
        (folder / "a.json").write_text(swapped_text(rng, (originals / "bench.json").read_text()), errors="replace")
        return ["bench", "--compare", *rng.sample(["a.json", str(originals / "bench.json")], 2)]
    beside = json.loads((originals / "model.engine.json").read_text())
    if rng.random() < 0.9:  # else each change is refused by the digest
        del beside[DIGEST]
    text = swapped_text(rng, json.dumps(beside))
    place = folder / "cache" / "unetrt" / "engines" if kind == "cache" else folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.engine").write_bytes((originals / "model.engine").read_bytes())
    (place / "model.engine.json").write_text(text, encoding="utf-8", errors="replace")
    if kind == "cache":
        return rng.choice((["cache", "list"], ["cache", "clear"]))
    return rng.choice((
        ["info", "model.engine"], ["predict", "model.engine", str(originals / "plain.tif"), "-o", "out"],
        ["package", "model.engine", "triton", "-o", "repository"],
    ))  # fmt: skip


def option_case(rng, originals, folder):
    """A command with one to three random options, on files that are whole or missing: nothing that takes long."""
    model, image = str(originals / "unet.onnx"), str(originals / "plain.tif")
    command, line = rng.choice((
        ("plan", ["64"]), ("export", ["none"]), ("train", ["none", "-o", "new"]), ("info", [model]),
        ("predict", [model, image, "-o", "out", "--backend", "onnxruntime"]), ("retile", [model, "-o", "new.onnx"]),
        ("eval", [image, image]), ("convert", [image, image, "-o", "out"]),
        ("package", [model, "triton", "-o", "new"]), ("build", ["none.onnx"]),
        ("live", ["none.onnx", "--replay", image]), ("bench", ["none.safetensors"]), ("adopt", ["none.onnx", *ADOPTED]),
    ))  # fmt: skip
    options = [
        option for option in cli.get_command(None, command).params
        if isinstance(option, click.Option) and option.name not in ("measure", "out", "training", "goals", "listed")
    ]  # fmt: skip
    for option in rng.choices(options, k=rng.choice((1, 1, 2, 3))):
        values = [] if option.is_flag else [rng.choice(_texts(rng, option)) for _ in range(option.nargs)]
        line = [*line, rng.choice([*option.opts, *option.secondary_opts]), *values]
    return [command, *line]


def _texts(rng, option):
    choices = list(getattr(option.type, "choices", ()))
    return choices if choices and rng.random() < 0.7 else TEXTS


KINDS = {
    "models": model_case,
    "images": image_case,
    "checkpoints": checkpoint_case,
    "sidecars": sidecar_case,
    "options": option_case,
}


def kind_of(number):
    """The kind of a case, in turn."""
    return list(KINDS)[number % len(KINDS)]


def case(seed, number, originals, folder):
    """Write the files of a case into an empty folder; return the arguments of its command."""
    rng = random.Random(f"{seed} {number}")
    return KINDS[kind_of(number)](rng, originals, folder)
