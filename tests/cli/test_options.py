"""Options that several commands share, and the exit codes of errors."""

from importlib import import_module

import click
import pytest

from unetrt._exit_codes import exit_code
from unetrt.cli import MEMORY, SIZE, EngineOptions, engine_options
from unetrt.runtime import errors


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("572", (572, 572)),
        (" 2048x1536 ", (2048, 1536)),
        ("300X400", (300, 400)),
        ("7\N{MULTIPLICATION SIGN}09", (7, 9)),
    ],
)
def test_sizes_are_height_by_width(text, size):
    assert SIZE(text) == size


@pytest.mark.parametrize("text", ["", "x", "12x", "1x2x3", "-4", "0", "3x0", "1.5"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(errors.OptionError, match=rf"^'{text}' is not a size: write 572, or 2048x1536"):
        SIZE(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("12", 12), ("12b", 12), ("2kB", 2000), ("1.5 MiB", 3 * 2**19), ("8GiB", 2**33), ("8gb", 8 * 10**9)],
)
def test_amounts_of_memory_are_bytes(text, size):
    assert MEMORY(text) == size


def test_the_options_of_a_session_arrive_as_one_value():
    given = []

    @click.command()
    @click.argument("model")
    @engine_options
    def command(model, engine):
        given.append((model, engine))

    command.main(["m.onnx"], standalone_mode=False)
    options = ["--backend", "onnxruntime-cuda", "--backend-option", "prefer_nhwc = 1", "--device", "1", "--lanes", "3"]
    command.main(["m.onnx", *options], standalone_mode=False)
    named = EngineOptions("onnxruntime-cuda", {"prefer_nhwc": "1"}, device=1, lanes=3)
    assert given == [("m.onnx", EngineOptions()), ("m.onnx", named)]


@pytest.mark.parametrize("option", ["--backend", "--backend-option", "--device", "--lanes", "--as"])
def test_commands_describe_a_shared_option_alike(option):
    helps = {
        name: parameter.help
        for name in ("predict", "live")
        for parameter in import_module(f"unetrt.cli.{name}").command.params
        if option in parameter.opts
    }
    assert len(helps) == 2
    assert len(set(helps.values())) == 1
    assert None not in helps.values()


FAILED = {"CameraError", "CudaError", "GateError", "InferenceError", "OutOfMemoryError", "ParityError", "TrainingError"}


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_bad_input_is_2_and_a_failed_run_1(kind):
    expected = 1 if kind.__name__ in FAILED else 130 if kind is errors.TrainingStoppedError else 2
    assert exit_code(kind("why")) == expected
