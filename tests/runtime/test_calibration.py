import json
from dataclasses import replace

import pytest

from unetrt.runtime import setting as setting_module
from unetrt.runtime.calibration import Calibration, Compared, any_kept, kept
from unetrt.runtime.cost_model import CostModel
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.sessions import BACKENDS, Backend
from unetrt.runtime.setting import Setting, chosen_backend

SHAPE = UNetShape(2, 4)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def setting():
    backend = next(one for one in BACKENDS if one.name == "onnxruntime")
    return Setting.here(backend, SHAPE)


@pytest.fixture
def calibration(setting):
    compared = (Compared((44, 64), 0.2, 0.21), Compared((64, 64), 0.4, 0.3), Compared((84, 64), 0.5, 0.5))
    return Calibration(setting, CostModel(1e-4, 1e-11, 0.0), compared, (100, 84), 1, "2026-01-31")


def test_what_is_kept_comes_back(calibration):
    assert not any_kept()
    assert kept(calibration.setting) is None
    calibration.save()
    assert kept(calibration.setting) == calibration
    assert any_kept()


def test_errors_are_shares_of_the_measured_time(calibration):
    assert [one.error for one in calibration.compared] == pytest.approx([0.05, -0.25, 0])
    assert (calibration.median, calibration.worst) == pytest.approx((0.05, 0.25))
    assert not calibration.reliable
    assert replace(calibration, compared=(calibration.compared[0], Compared((64, 64), 0.4, 0.345))).reliable
    assert calibration.to_dict()["compared"][1]["error"] == pytest.approx(-0.25)


def test_what_is_larger_than_measured_is_told(calibration):
    assert calibration.covers((84, 100))
    assert not calibration.covers((100, 88))


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "openvino"}, {"version": "0.1"}, {"device": "another processor"}, {"threads": 99},
        {"precision": "fp16"}, {"batch": 2}, {"depth": 3}, {"base": 8}, {"channels": 2}, {"classes": 3},
    ],
)  # fmt: skip
def test_that_of_another_setting_is_not_used(calibration, other):
    calibration.save()
    assert kept(replace(calibration.setting, **other)) is None


def test_the_setting_says_what_it_is(setting):
    assert setting.version
    assert setting.device
    assert setting.threads >= 1
    assert setting.shape == SHAPE
    assert f"onnxruntime {setting.version}, fp32, {setting.device}" in str(setting)


DAMAGED = {
    "empty": "",
    "cut short": '{"schema": 1, "setting"',
    "no object": "[1, 2]",
    "nested": "[" * 100_000,
    "nothing in it": '{"schema": 1}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_line(calibration, text):
    calibration.save()
    calibration.setting.path.write_text(text)
    refused(calibration.setting)


CHANGES = {
    "another schema": lambda stored: stored.update(schema=99),
    "a text for a number": lambda stored: stored["model"].update(per_mac="fast"),
    "not a number": lambda stored: stored["model"].update(per_mac=float("nan")),
    "negative": lambda stored: stored["model"].update(per_tile=-1.0),
    "a field too few": lambda stored: stored["setting"].pop("batch"),
    "a field too many": lambda stored: stored["setting"].update(colour="red"),
    "no time": lambda stored: stored["compared"][0].update(measured=0),
    "no tile": lambda stored: stored["compared"][0].update(tile=[1]),
    "nothing compared": lambda stored: stored.update(compared=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_makes_no_sense_is_named_in_one_line(calibration, change):
    stored = calibration.to_dict()
    change(stored)
    calibration.save()
    calibration.setting.path.write_text(json.dumps(stored))
    refused(calibration.setting)


def test_a_file_that_is_no_text_is_named_in_one_line(calibration):
    calibration.save()
    calibration.setting.path.write_bytes(b"\xff\xfe\x00")
    refused(calibration.setting)


def refused(setting):
    with pytest.raises(ModelFileError, match="is no calibration .*: --measure writes it anew") as raised:
        kept(setting)
    assert "\n" not in str(raised.value)
    assert str(setting.path) in str(raised.value)


def test_auto_takes_the_first_that_is_usable(monkeypatch):
    unusable = Backend("unusable", "fake:nothing")
    monkeypatch.setattr(Backend, "probe", lambda self, device=None: "it is broken" if self is unusable else None)
    monkeypatch.setattr(setting_module, "BACKENDS", (unusable, *BACKENDS))
    assert chosen_backend() == BACKENDS[0]
    assert chosen_backend("onnxruntime").name == "onnxruntime"
    with pytest.raises(BackendUnavailableError, match="unusable: it is broken"):
        chosen_backend("unusable")


@pytest.mark.parametrize("name", ["numpy", "abacus"])
def test_a_backend_that_is_none_is_refused(name):
    with pytest.raises(OptionError, match=f"backend '{name}' is unknown: use one of auto, .*onnxruntime"):
        chosen_backend(name)
