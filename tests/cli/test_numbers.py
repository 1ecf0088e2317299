"""Numbers that nobody expects, for all numeric options and arguments of all commands.

The options are found in the tree of commands. Whatever the number, the command ends with a documented exit code and at
most one line of error, which names the option; there is no traceback, and no line is long.
"""

import re

import click
import pytest

from unetrt.__main__ import main
from unetrt.cli import cli

# Text that is no number, or none that any option can mean.
NEVER = {
    "NaN": "nan",
    "infinity": "inf",
    "minus infinity": "-inf",
    "a large float": "1e308",
    "a float beyond all": "1e400",
    "nothing": "",
    "a space": " ",
    "a Devanagari digit": "\N{DEVANAGARI DIGIT TWO}",
    "a full-width digit": "\N{FULLWIDTH DIGIT ONE}",
    "a superscript": "\N{SUPERSCRIPT TWO}",
    "hexadecimal": "0x10",
    "an underscore": "1_0",
    "10^400": "1" + 400 * "0",
    "minus 10^400": "-1" + 400 * "0",
    "hundreds of digits": 700 * "9",
    "thousands of digits": 20_000 * "9",
    "a long fraction": "0." + 20_000 * "3" + "x",
    "a line break": "1\n2",
    "an escape sequence": "\x1b[31m1",
    "a lone surrogate": "\udcff1",
}
# Numbers at the edges of what options accept: a few are valid for some options.
EDGES = ("0", "-1", "1000000000", "1e-9")

# Texts that a function of an option parses to numbers -> what surrounds the number. The value is `NEVER` or an edge.
TEXTS = {
    ("adopt", "--normalisation"): ("fixed:{}:1", "fixed:0:{}", "percentile:{}:99", "percentile:1:{}"),
    ("build", "--capability"): ("{}", "8.{}"),
    ("bench", "--floor"): ("{}", "onnxruntime={}"),
    ("predict", "--backend-option"): ("arena={}",),
    ("live", "--backend-option"): ("arena={}",),
}
# Of these, those that a backend judges, or that the command does not reach on this machine, are not refused by number.
LENIENT = {"--backend-option"}
# Parts of the text of a size or an amount of memory.
FORMS = {"HxW": ("{}", "300x{}", "{}x300"), "BYTES": ("{}", "{}GiB", "{}MB")}
# Longest line of an error, in characters.
LONGEST = 2100


def commands(command=cli, path=()):
    if isinstance(command, click.Group):
        for name in command.list_commands(None):
            yield from commands(command.get_command(None, name), (*path, name))
    else:
        yield " ".join(path), command


def forms(command, parameter):
    """What surrounds a number in the text of a parameter; nothing for parameters without numbers."""
    names = [name for name in parameter.opts if (command, name) in TEXTS]
    if names:
        return TEXTS[command, names[0]]
    numeric = parameter.type.name in ("integer", "integer range", "float", "float range")
    return ("{}",) if numeric else FORMS.get(parameter.type.name, ())


def numeric_parameters():
    """(command, parameter, form) of all numbers on the command line."""
    return [
        (name, parameter, form)
        for name, command in commands()
        for parameter in command.params
        for form in forms(name, parameter)
    ]


CASES = {
    f"{name} {parameter.opts[-1]} {form}": (name, parameter, form) for name, parameter, form in numeric_parameters()
}


@pytest.fixture(scope="module")
def line(tiny_model, tiny_run, drawn_folder):
    """A command line of each command, which is right but for what it would work on where that takes long."""
    images, labels = drawn_folder / "images", drawn_folder / "labels"
    return {
        "demo": f"--out {tiny_model}",
        "train": f"{drawn_folder / 'none'} -o new",
        "export": f"{tiny_run / 'none'} -o new/model.onnx",
        "adopt": "none.onnx -o new.onnx --normalisation zscore --classes a,b --head logits",
        "retile": f"{tiny_model} -o new.onnx",  # without the size that it needs
        "build": "none.onnx -o new.engine",
        "package": f"{tiny_model} triton -o new",
        "predict": f"{tiny_model} {images / '3.tif'} -o new --backend onnxruntime",
        "live": f"{tiny_model} --replay {images / '3.tif'} --fps 0 --backend onnxruntime",
        "convert": f"{labels / '3.tif'} -o new",
        "eval": f"{labels} {labels}",
        "plan": "300",
        "bench": "none.safetensors",
    }


def run(command, given, capsys):
    """Run a command; return its exit code and the lines of error, after checking that these are as they should be."""
    status = main([*command.split(), *given])
    out, err = capsys.readouterr()
    errors = [text for text in err.splitlines() if text.startswith("Error: ")]
    assert status in (0, 1, 2), err
    assert len(errors) == (status != 0), err
    assert all(len(text) <= LONGEST for text in (*out.splitlines(), *err.splitlines()))
    assert "Traceback" not in out + err
    assert "\x1b" not in err
    return status, errors


def given_line(command, parameter, text, line):
    """The command line with a parameter's text; an argument replaces that of the line."""
    if isinstance(parameter, click.Argument):
        return ["--", text] if parameter.type.name == "HxW" else [*line[command].split(), "--", text]
    # Options of `export` and others that are given twice take the last.
    return [*line[command].split(), parameter.opts[-1], text]


def names_it(parameter, error):
    """Whether an error names an option or argument: as it is written, or in words."""
    return all(word in error.lower() for word in re.split("[-_]", parameter.opts[-1].lstrip("-")))


@pytest.mark.parametrize(("command", "parameter", "form"), CASES.values(), ids=CASES)
def test_what_is_no_number_is_refused_by_the_name_of_its_option(
    line, tmp_path, monkeypatch, capsys, command, parameter, form
):
    monkeypatch.chdir(tmp_path)
    for what, text in NEVER.items():
        if form != "{}" and not text.strip():
            continue
        status, errors = run(command, given_line(command, parameter, form.format(text), line), capsys)
        assert status == 2 or parameter.opts[-1] in LENIENT, what
        assert all(names_it(parameter, error) for error in errors) or parameter.opts[-1] in LENIENT, (what, errors)
    assert list(tmp_path.iterdir()) == [] or parameter.opts[-1] in LENIENT


@pytest.mark.parametrize(("command", "parameter", "form"), CASES.values(), ids=CASES)
def test_numbers_at_the_edges_end_in_a_result_or_in_one_line(
    line, tmp_path, monkeypatch, capsys, command, parameter, form
):
    for number in EDGES:
        (tmp_path / number).mkdir()
        monkeypatch.chdir(tmp_path / number)
        run(command, given_line(command, parameter, form.format(number), line), capsys)


def test_all_kinds_of_numbers_are_found():
    """A type of option that is not among those that the test knows would not be tested."""
    kinds = {parameter.type.name for _, command in commands() for parameter in command.params}
    assert kinds - {"integer", "float", *FORMS} == {
        "A,B,...",
        "MODE",
        "N|NAME",
        "NAME=VALUE",
        "X.Y",
        "boolean",
        "choice",
        "path",
        "text",
    }
    assert len(CASES) > 90


def test_errors_of_any_length_keep_their_begin_and_end(capsys):
    status, (error,) = run("plan", ["300", "--precision", 50_000 * "x"], capsys)
    assert status == 2
    assert len(error) < LONGEST
    assert error.startswith("Error: Invalid value for '--precision'")
    assert error.endswith("'fp32', 'fp16', 'bf16'.")


def test_errors_show_no_control_characters_of_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, (error,) = run("info", ["a\x1b[31m\udcff\u202e.onnx"], capsys)
    assert status == 2
    assert error.startswith(r"Error: a\x1b[31m\udcff\u202e.onnx does not exist")
