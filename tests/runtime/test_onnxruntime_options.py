"""Which options ONNX Runtime's CUDA provider gets: the fastest that are right, tried once, or what a user gives."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.conftest import editable, small_spec
from tests.runtime.fake_onnxruntime import Behaviour, Bench
from unetrt.__main__ import main
from unetrt.export.exporter import Options, export
from unetrt.export.gate import DEFAULTS
from unetrt.runtime.errors import InferenceError, OptionError, OutOfMemoryError
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import onnxruntime_options, open_session
from unetrt.runtime.sessions.agreement import TOLERANCES, difference, tiles_for
from unetrt.runtime.sessions.cuda import RESERVE
from unetrt.runtime.sessions.onnxruntime_options import PLAIN, SETS, base
from unetrt.trainer.drawn_cells import draw

CUDA = "onnxruntime-cuda"
MIB = 2**20
# Loads of one run of trials: each set, and the chosen one once more for its memory.
LOADS = len(SETS) + 1


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/unetrt/onnxruntime"


@pytest.fixture
def bench(monkeypatch, cache):
    return Bench(monkeypatch)


@pytest.fixture(scope="module")
def labels_model(tiny_checkpoint, tmp_path_factory):
    """A model of raw pixels with labels, four tiles in a pass."""
    frames = [draw((96, 110), seed=seed).frame[None] for seed in range(3)]
    checkpoint = replace(
        tiny_checkpoint, frames=tuple(frames), normalisation=tiny_checkpoint.normalisation.frozen(frames)
    )
    path = tmp_path_factory.mktemp("exported") / "labels.onnx"
    export(checkpoint, path, Options((60, 76), "fp16", "labels", batch=4, input="uint16"))
    return path


def named(settings):
    """The set that a session was loaded with."""
    known = [name for name, options in SETS.items() if (PLAIN | options).items() <= settings.items()]
    return max(known, key=lambda name: len(SETS[name]))


def behave(bench, **sets):
    """Let sets of options behave in ways of their own; a pass of the others takes a second."""
    given = {name.replace("_", "-"): behaviour for name, behaviour in sets.items()}
    bench.build.behaviour = lambda settings: given.get(named(settings), Behaviour(seconds=1.0))


def opened(bench, model, **place):
    """The set of options in which a new session's lane computes."""
    with open_session(model, CUDA, **place) as session:
        session.lanes(1)
        return named(bench.build.loaded[-1])


def test_the_fastest_is_taken_and_tried_once(bench, tiny_model, caplog):
    behave(bench, nhwc_fused=Behaviour(seconds=0.25), nhwc=Behaviour(seconds=0.5))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, tiny_model) == "nhwc-fused"
    assert f"options for {tiny_model}: nhwc-fused (plain 1" in caplog.text
    assert [named(settings) for settings in bench.build.loaded[:LOADS]] == [*SETS, "nhwc-fused"]
    bench.build.loaded.clear()
    assert opened(bench, tiny_model, device=1) == "nhwc-fused"
    assert len(bench.build.loaded) == 2, "one to see that it loads, and one lane"


@pytest.mark.parametrize("model", ["tiny_model", "labels_model"])
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(answer="nan"), "NaN or infinity|of the pixels change class"),
        (Behaviour(answer="other"), "a probability differs by|of the pixels change class"),
        (Behaviour(loads="no memory"), "out of memory"),
        (Behaviour(loads="no kernel"), "cannot be computed with ONNX Runtime's CUDA provider"),
        (Behaviour(runs="lost"), "CUDA failure 719"),
        (Behaviour(runs="full arena"), "out of memory"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_or_fails_is_passed_over(bench, request, model, behaviour, reason, caplog):
    model = request.getfixturevalue(model)
    behave(bench, nhwc=behaviour, nhwc_fused=Behaviour(seconds=0.5))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, model) == "nhwc-fused"
    said = next(said for said in caplog.messages if "options nhwc are passed over" in said)
    assert re.search(reason, said)
    assert "\n" not in said
    assert bench.driver.violations == []


def test_an_option_that_this_onnxruntime_does_not_know_is_passed_over(bench, tiny_model, caplog):
    bench.build.options = bench.build.options - {"fuse_conv_bias"}
    behave(bench, nhwc=Behaviour(seconds=0.5), nhwc_fused=Behaviour(seconds=0.1))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, tiny_model) == "nhwc"
    assert 'nhwc-fused are passed over: ONNX Runtime\'s CUDA provider: Unknown provider option: "fuse_conv_bias"' in (
        caplog.text
    )


@pytest.mark.parametrize("answer", ["blank", "nan"])
def test_where_the_first_answer_shows_nothing_the_first_set_is_taken(bench, labels_model, answer, caplog):
    """Labels of one class are also what NaN gives."""
    behave(bench, plain=Behaviour(seconds=1.0, answer=answer), nhwc=Behaviour(answer=answer))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, labels_model) == "plain"
    assert "nhwc are passed over: the answer of plain has nothing to compare" in caplog.text


def test_labels_of_fp32_would_not_show_tf32(bench, tiny_checkpoint, tmp_path, caplog):
    export(tiny_checkpoint, tmp_path / "model.onnx", Options((60, 76), head="labels"))
    behave(bench, nhwc=Behaviour(seconds=0.5))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, tmp_path / "model.onnx") == "plain"
    assert "nhwc are passed over: labels do not show whether FP32 was computed with TF32" in caplog.text


def test_a_model_that_does_not_run_says_so(bench, tiny_model):
    behave(bench, plain=Behaviour(runs="lost"))
    with pytest.raises(InferenceError, match="CUDA failure 719"):
        open_session(tiny_model, CUDA)
    bench.check()


def test_answers_are_those_of_the_cpu_whichever_is_taken(bench, labels_model):
    frames = [draw(size, seed=9).frame for size in ((61, 43), (101, 163))]
    with Segmenter(labels_model, backend="onnxruntime") as segmenter:
        expected = [segmenter.segment(frame).labels for frame in frames]
    behave(bench, nhwc_exhaustive=Behaviour(seconds=0.5))
    with Segmenter(labels_model, backend=CUDA, lanes=3) as segmenter:
        for frame, labels in zip(frames, expected, strict=True):
            np.testing.assert_array_equal(segmenter.segment(frame).labels, labels)
    assert named(bench.build.loaded[-1]) == "nhwc-exhaustive"
    bench.check()


def test_trials_show_both_classes(bench, labels_model, caplog):
    with caplog.at_level("INFO", "unetrt"):
        opened(bench, labels_model)
    assert "nothing to compare" not in caplog.text
    ((_, choice),) = onnxruntime_options.choices()
    assert [trial.name for trial in choice.trials if trial.seconds] == list(SETS)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"schema": 2}',
        lambda kept: kept | {"chosen": "fastest"},
        lambda kept: kept | {"chosen": "nhwc", "trials": []},
        lambda kept: kept | {"lane": -1},
        lambda kept: kept | {"lane": "much"},
        lambda kept: kept | {"trials": [kept["trials"][0] | {"seconds": float("nan")}]},
        lambda kept: kept | {"trials": 3},
    ],
    ids=range(10),
)
def test_a_damaged_verdict_is_made_again(bench, tiny_model, cache, damage):
    opened(bench, tiny_model)
    (path,) = cache.glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage(json.loads(whole))).encode())
    bench.build.loaded.clear()
    opened(bench, tiny_model)
    assert len(bench.build.loaded) == LOADS + 1
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()


def changed_weights(model, folder):
    changed = editable(model)
    weights = onnx.numpy_helper.to_array(changed.graph.initializer[0])
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights + 1, changed.graph.initializer[0].name))
    onnx.save(changed, folder / "changed.onnx")
    return folder / "changed.onnx"


@pytest.mark.parametrize("what", ["weights", "onnxruntime", "gpu", "cudnn"])
def test_what_a_verdict_depends_on_makes_another(bench, tiny_model, tmp_path, monkeypatch, what):
    opened(bench, tiny_model)
    bench.build.loaded.clear()
    if what == "onnxruntime":
        monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    elif what == "cudnn":
        monkeypatch.setattr(onnxruntime_options, "cudnn_version", lambda: "99999")
    elif what == "gpu":
        bench.driver.name = "Other GPU"
    opened(bench, changed_weights(tiny_model, tmp_path) if what == "weights" else tiny_model)
    assert len(bench.build.loaded) == LOADS + 1


def test_without_a_cache_that_can_be_written_to_nothing_is_kept(bench, tiny_model, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    behave(bench, nhwc=Behaviour(seconds=0.5))
    with caplog.at_level("INFO", "unetrt"):
        assert [opened(bench, tiny_model) for _ in range(2)] == ["nhwc", "nhwc"]
    assert "is not kept: cannot write to" in caplog.text
    assert len(bench.build.loaded) == 2 * (LOADS + 1)


def test_of_two_at_once_one_tries(bench, tiny_model):
    with ThreadPoolExecutor(2) as threads:
        sessions = [threads.submit(open_session, tiny_model, CUDA) for _ in range(2)]
        for session in sessions:
            session.result().close()
    assert LOADS <= len(bench.build.loaded) <= LOADS + 1


def test_a_set_that_was_being_tried_when_the_process_ended_is_tried_again(bench, tiny_model, cache):
    """The process may have been ended for another reason."""
    assert crashed(tiny_model) == 77
    behave(bench, nhwc_fused=Behaviour(seconds=0.1), nhwc=Behaviour(seconds=0.5))
    assert opened(bench, tiny_model) == "nhwc-fused"
    assert not list(cache.glob("*.trying"))


def crashed(model):
    """The exit status of a process that one of the sets ends."""
    return subprocess.run([sys.executable, "-m", "tests.runtime.crash_in_a_trial", model], check=False).returncode


def test_what_kills_the_process_twice_is_not_tried_again(bench, tiny_model, cache, caplog):
    assert [crashed(tiny_model), crashed(tiny_model)] == [77, 77]
    behave(bench, nhwc_fused=Behaviour(seconds=0.1), nhwc=Behaviour(seconds=0.5))
    with caplog.at_level("INFO", "unetrt"):
        assert opened(bench, tiny_model) == "nhwc"
    assert "options nhwc-fused are passed over: the process ended twice while it was tried" in caplog.text
    assert not list(cache.glob("*.trying"))


def test_an_interrupted_trial_is_tried_again(bench, tiny_model, cache):
    def interrupted(settings):
        if named(settings) == "nhwc":
            raise KeyboardInterrupt
        return Behaviour()

    bench.build.behaviour = interrupted
    with pytest.raises(KeyboardInterrupt):
        open_session(tiny_model, CUDA)
    behave(bench, nhwc=Behaviour(seconds=0.5))
    assert opened(bench, tiny_model) == "nhwc"


# Options that a user gives


@pytest.mark.parametrize("value", ["1", 1, True])
def test_what_a_user_gives_is_used_and_nothing_is_compared(bench, tiny_model, value):
    with Segmenter(tiny_model, backend=CUDA, backend_options={"prefer_nhwc": value}) as segmenter:
        segmenter.segment(draw((70, 90), seed=1).frame)
    expected = base("fp32") | {"prefer_nhwc": "1"}
    placed = {"device_id", "user_compute_stream", "gpu_mem_limit"}
    for settings in bench.build.loaded:
        assert {name: given for name, given in settings.items() if name not in placed} == expected
    opened(bench, tiny_model)
    assert {named(settings) for settings in bench.build.loaded} == set(SETS), (
        "what was given says nothing of the others"
    )


def test_a_bound_that_a_user_gives_is_the_bound(bench, tiny_model):
    with LiveSegmenter(tiny_model, backend=CUDA, backend_options={"gpu_mem_limit": 123456789}):
        assert {settings["gpu_mem_limit"] for settings in bench.build.loaded} == {"123456789"}


REFUSED = [
    (CUDA, {"prefer_nwhc": 1}, "no backend option 'prefer_nwhc': use one of arena_extend_strategy, .*prefer_nhwc"),
    (CUDA, {"device_id": 1}, "no backend option 'device_id': use one of"),
    ("onnxruntime", {"prefer_nhwc": 1}, "engines on the CPU have no backend option 'prefer_nhwc': use threads"),
    ("openvino", {"a": 1, "b": 2}, "engines on the CPU have no backend option 'a': use threads"),
    ("openvino", {"threads": 0}, "threads must be a whole number from 1 to 9999"),
    ("onnxruntime", {"threads": "all"}, "threads must be a whole number from 1 to 9999"),
    ("auto", {"prefer_nhwc": 1}, r"backend options \(prefer_nhwc\) need a named backend: name one"),
]


@pytest.mark.parametrize(("backend", "options", "message"), REFUSED)
def test_options_that_a_backend_does_not_have_are_refused(tiny_model, backend, options, message):
    """Also where there is no GPU."""
    with pytest.raises(OptionError, match=message):
        open_session(tiny_model, backend, backend_options=options)


@pytest.mark.parametrize("backend", [CUDA, "onnxruntime", "auto"])
@pytest.mark.parametrize("options", [1, True, "prefer_nhwc=1", ["prefer_nhwc"], [("a", 1)], {1: 2}, {"": 1}, 0, ""])
def test_options_of_odd_types_are_refused(tiny_model, backend, options):
    with pytest.raises(OptionError, match="backend options must be values by name, such as {'prefer_nhwc': '1'}, not"):
        open_session(tiny_model, backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options", "message"), REFUSED)
def test_the_command_line_refuses_them_too(tiny_model, drawn_folder, tmp_path, capsys, backend, options, message):
    given = [part for name, value in options.items() for part in ("--backend-option", f"{name}={value}")]
    command = ["predict", tiny_model, drawn_folder / "images", "-o", tmp_path / "out", "--backend", backend, *given]
    assert main(list(map(str, command))) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(message, said)


@pytest.mark.parametrize("command", ["predict", "live"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["prefer_nhwc"], "'prefer_nhwc' is not a backend option: write NAME=VALUE, such as prefer_nhwc=1"),
        (["=1"], "'=1' is not a backend option"),
        (["prefer_nhwc=1", "prefer_nhwc=0"], "--backend-option prefer_nhwc is given twice"),
    ],
)
def test_what_is_no_option_is_refused(tiny_model, drawn_folder, tmp_path, capsys, command, given, message):
    images = drawn_folder / "images"
    where = [images, "-o", tmp_path / "out"] if command == "predict" else ["--replay", images]
    arguments = [command, tiny_model, *where, *(part for one in given for part in ("--backend-option", one))]
    assert main(list(map(str, arguments))) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


@pytest.mark.parametrize("command", ["predict", "live"])
def test_the_command_line_hands_options_on(bench, tiny_model, drawn_folder, tmp_path, command):
    images = drawn_folder / "images"
    where = [images, "-o", tmp_path / "out"] if command == "predict" else ["--replay", images, "--fps", 0]
    options = ["--backend", CUDA, "--backend-option", "prefer_nhwc=1", "--backend-option", "fuse_conv_bias = 1"]
    assert main(list(map(str, [command, tiny_model, *where, *options]))) == 0
    assert {named(settings) for settings in bench.build.loaded} == {"nhwc-fused"}


def test_an_open_session_takes_no_options(bench, tiny_model):
    with open_session(tiny_model, CUDA) as session, pytest.raises(OptionError, match="pass them to open_session"):
        Segmenter(session, backend_options={"prefer_nhwc": 1})


def test_an_option_that_this_version_lacks_is_no_fault_of_the_file(bench, tiny_model):
    bench.build.options = bench.build.options - {"enable_cudnn"}
    with pytest.raises(OptionError, match='Unknown provider option: "enable_cudnn"; omit that backend option'):
        open_session(tiny_model, CUDA, backend_options={"enable_cudnn": 1})
    bench.check()


# Memory


def test_a_lane_is_measured_refused_with_numbers_and_bounded(bench, tiny_model):
    takes = 100 * MIB
    bench.build.behaviour = lambda settings: Behaviour(takes=takes)
    with open_session(tiny_model, CUDA) as session:
        assert bench.driver.taken == 0, "trials leave nothing"
        lanes = session.lanes(3)
        assert {settings["gpu_mem_limit"] for settings in bench.build.loaded[-3:]} == {str(takes + 64 * MIB)}
        with open_session(tiny_model, CUDA) as other:
            free = bench.driver.total - bench.driver.taken
            fitting = (free - RESERVE) // (takes + MIB)
            loaded, taken = len(bench.build.loaded), bench.driver.taken
            message = (
                r"9 lanes need 90\d MiB \(9 x \d+ KiB for tiles, 9 x 100 MiB for weights, activations and workspace\) "
                rf"and a reserve of 128 MiB, and \d+ MiB of 1.1 GiB are free: use {fitting} lanes$"
            )
            with pytest.raises(OutOfMemoryError, match=message):
                other.lanes(9)
            assert (len(bench.build.loaded), bench.driver.taken) == (loaded, taken), "refused before any was loaded"
            assert len(other.lanes(fitting)) == fitting
        assert len(lanes) == 3
    del session, other, lanes
    bench.check()


def test_trials_free_each_session_before_the_next(bench, tiny_model):
    """Two would not fit."""
    bench.build.behaviour = lambda settings: Behaviour(takes=600 * MIB)
    with open_session(tiny_model, CUDA) as session:
        assert len(session.lanes(1)) == 1
        trials = json.loads(next(onnxruntime_options.folder().glob("*.json")).read_text())["trials"]
    assert [trial["why_not"] for trial in trials] == [""] * len(SETS)


def test_a_set_that_failed_leaves_nothing(bench, tiny_model):
    given = {"nhwc": Behaviour(takes=50 * MIB, runs="lost"), "nhwc-fused": Behaviour(takes=50 * MIB, answer="nan")}
    bench.build.behaviour = lambda settings: given.get(named(settings), Behaviour(takes=50 * MIB))
    with open_session(tiny_model, CUDA):
        assert bench.driver.taken == 0
        assert not bench.build.living


def test_memory_that_cannot_be_measured_is_estimated(bench, tiny_model):
    """Another program freed some meanwhile: the device then has more than before."""
    with open_session(tiny_model, CUDA) as session:
        estimate = session.own_memory()
    spec = session.spec
    assert estimate == tiny_model.stat().st_size + spec.shape.activation_bytes(*spec.tile)


# The tile, and what may differ


def test_limits_are_those_of_the_exports_gate():
    assert {name: (limits.error, limits.flips) for name, limits in TOLERANCES.items()} == {
        name: (limits.error, limits.flips) for name, limits in DEFAULTS.items()
    }


def test_fp16_may_use_tensor_cores():
    """ONNX Runtime keeps cuDNN from them where TF32 is off, whatever the type."""
    assert "use_tf32" not in base("fp16") | base("bf16")
    assert base("fp32")["use_tf32"] == base("int8")["use_tf32"] == "0"


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_tiles_have_structure_and_are_always_the_same(dtype):
    fixed = Normalisation("fixed", offset=(20.0, 30.0), scale=(0.01, 0.02))
    spec = small_spec(channels=2, batch=3, input_dtype=dtype, normalisation=fixed)
    first, second = list(tiles_for(spec)), list(tiles_for(spec))
    assert len(first) > 1
    for tile, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(tile, again)
        assert (tile.shape, tile.dtype) == (spec.new_input().shape, spec.new_input().dtype)
        assert tile.std(axis=(2, 3)).min() > 0
    assert len({tile.tobytes() for tile in first}) == len(first)


@pytest.mark.parametrize("head", ["logits", "probabilities", "labels"])
def test_small_differences_pass_and_large_ones_do_not(head):
    spec = small_spec(head=head, batch=2)
    random = np.random.default_rng(0)
    answer = spec.new_output()
    if head == "labels":
        answer[...] = random.integers(0, 2, answer.shape)
        other = answer.copy()
        assert difference(spec, answer, other) == ""
        other[:, :2] = 1 - other[:, :2]
        assert "of the pixels change class" in difference(spec, answer, other)
        return
    answer[:, 0] = random.uniform(0.6, 1, answer[:, 0].shape)
    answer[:, 1] = 1 - answer[:, 0]
    assert difference(spec, answer, answer + np.float32(5e-6)) == ""
    assert "on average (at most 1e-05), as with TF32" in difference(spec, answer, answer * np.float32(1 + 5e-4))
    assert difference(replace(spec, precision="fp16"), answer, answer * np.float32(1 + 5e-4)) == ""
    changed = answer.copy()
    changed[1, 0, 3, 3] += 0.05
    assert "a probability differs by" in difference(spec, answer, changed)
    changed[0, 0, 0, 0] = np.nan
    assert difference(spec, answer, changed) == "it gives NaN or infinity"


# The cache


def test_verdicts_are_listed_and_cleared(bench, tiny_model, labels_model, cache, capsys):
    for model in (tiny_model, labels_model):
        opened(bench, model)
    (cache / "0123.json").write_text("damaged")
    (cache / "4567.trying").write_text("nhwc")
    assert main(["cache", "list"]) == 0
    damaged, *listed, _ = capsys.readouterr().out.splitlines()
    assert damaged.endswith("not readable")
    assert {str(tiny_model), str(labels_model)} == {line.split()[5].removesuffix(":") for line in listed}
    assert all("plain " in line and "a lane takes" in line for line in listed)
    assert main(["cache", "clear", listed[0].split()[0]]) == 0
    assert "1 choices of ONNX Runtime's options deleted" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert list(cache.iterdir()) == []
    assert main(["cache", "clear", "89"]) == 2
    bench.build.loaded.clear()
    opened(bench, tiny_model)
    assert len(bench.build.loaded) == LOADS + 1
