import json
from dataclasses import replace

import numpy as np
import pytest

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.geometry.planner import Budget, TileTime
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.sessions import chosen_backend, measured, open_session
from unetrt.runtime.sessions.measured import Setting, keep, kept, measure, pass_seconds, tile_time

SHAPE = UNetShape(2, 4)
TIMES = (TileTime((44, 64), 0.2, 0.01, "2026-01-31"), TileTime((64, 64), 0.4, 0.02, "2026-01-31"))


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def setting():
    return Setting.here(chosen_backend("onnxruntime"), SHAPE, "fp32", Budget())


def test_times_that_are_kept_come_back(setting):
    assert kept(setting) == ()
    assert keep(setting, TIMES) == TIMES
    assert kept(setting) == TIMES


def test_a_tile_that_is_measured_again_replaces_the_earlier_one(setting):
    keep(setting, TIMES)
    again, new = TileTime((44, 64), 0.3, 0.01, "2026-02-01"), TileTime((84, 64), 0.5, 0.02, "2026-02-01")
    assert keep(setting, [again, new]) == (again, TIMES[1], new)
    assert kept(setting) == (again, TIMES[1], new)


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "openvino"}, {"version": "0.1"}, {"device": "another processor"}, {"threads": 99},
        {"precision": "fp16"}, {"batch": 2}, {"lanes": 2}, {"depth": 3}, {"base": 8}, {"channels": 2}, {"classes": 3},
    ],
    ids=str,
)  # fmt: skip
def test_times_of_another_setting_are_not_used(setting, other):
    keep(setting, TIMES)
    changed = replace(setting, **other)
    assert kept(changed) == ()
    setting.path.rename(changed.path)
    assert kept(changed) == ()


def test_a_setting_as_text_names_engine_release_precision_and_device(setting):
    assert setting.version
    assert setting.threads >= 1
    assert f"onnxruntime {setting.version}, fp32, {setting.device}" in str(setting)


DAMAGED = {
    "empty": b"",
    "cut short": b'{"setting": {"backend"',
    "not an object": b"[1, 2]",
    "nested": b"[" * 100_000,
    "nothing in it": b"{}",
    "not text": b"\xff\xfe\x00",
}
CHANGES = {
    "another schema": lambda stored: stored.update(schema=99),
    "a text for a number": lambda stored: stored["tiles"][0].update(seconds="fast"),
    "no time": lambda stored: stored["tiles"][0].update(seconds=0),
    "negative": lambda stored: stored["tiles"][0].update(noise=-1.0),
    "not a tile": lambda stored: stored["tiles"][0].update(tile=[1]),
    "a field missing": lambda stored: stored["setting"].pop("batch"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_line_and_replaced(setting, content):
    keep(setting, TIMES)
    setting.path.write_bytes(content)
    require_refused_and_replaced(setting)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_invalid_values_are_named_in_one_line_and_replaced(setting, change):
    keep(setting, TIMES)
    stored = json.loads(setting.path.read_text())
    change(stored)
    setting.path.write_text(json.dumps(stored))
    require_refused_and_replaced(setting)


def require_refused_and_replaced(setting):
    with pytest.raises(ModelFileError) as raised:
        kept(setting)
    assert "\n" not in str(raised.value)
    assert str(setting.path) in str(raised.value)
    assert keep(setting, TIMES[:1]) == TIMES[:1] == kept(setting)


def test_the_time_of_a_tile_is_the_median_of_its_rounds_with_their_median_deviation():
    one = tile_time((44, 44), [1.0, 1.3, 1.1, 9.0, 1.2])
    assert (one.seconds, one.noise) == (1.2, pytest.approx(0.1))
    assert tile_time((44, 44), [2.0]).noise == pytest.approx(0.02)


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(measured, "LONG", 0)


def test_tiles_take_turns_and_one_is_open_at_a_time(tiny_model, setting, short_rounds, monkeypatch):
    tiles, opened, steps = [(44, 60), (76, 52), (60, 60)], [], []

    def noted(path, *place):
        session = open_session(path, *place)
        opened.append((session.spec.tile, session.spec.batch))
        return session

    monkeypatch.setattr(measured, "open_session", noted)
    batches = replace(setting, batch=2)
    times = measure(tiny_model, tiles, batches, progress=lambda done, total: steps.append((done, total)))
    assert [one.tile for one in times] == tiles
    assert all(one.seconds > 0 for one in times)
    rounds = [opened[at : at + 3] for at in range(0, len(opened), 3)]
    assert [sorted(one) for one in rounds] == [sorted((tile, 2) for tile in tiles)] * measured.ROUNDS
    assert steps == [(done, len(opened)) for done in range(1, len(opened) + 1)]


def test_no_round_begins_after_the_patience_has_ended(tiny_model, setting, short_rounds, monkeypatch):
    steps = []
    monkeypatch.setattr(measured, "PATIENCE", 0)
    measure(tiny_model, [(44, 60), (76, 52)], setting, progress=lambda *step: steps.append(step))
    assert len(steps) == 2


class SleepingLane:
    """A lane whose passes end at given times of a clock that only waiting moves."""

    def __init__(self, clock, seconds, dtype=np.float32):
        self.input, self.clock, self.seconds, self.passes = np.zeros((1, 1, 2, 2), dtype), clock, seconds, 0

    def launch(self):
        self.end, self.passes = self.clock.now + self.seconds, self.passes + 1

    def wait(self):
        self.clock.now = max(self.clock.now, self.end)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "passes"), [(0.1, 1 + 4), (1e-3, 1 + measured.MOST), (1.0, 1 + measured.FEWEST), (60.0, 1)]
)
def test_passes_are_timed_for_a_while_and_slow_ones_once(monkeypatch, seconds, passes):
    clock = Clock()
    monkeypatch.setattr(measured, "time", clock)
    lane = SleepingLane(clock, seconds)
    assert pass_seconds([lane]) == pytest.approx(seconds)
    assert lane.passes == passes


def test_passes_in_several_lanes_overlap(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measured, "time", clock)
    lanes = [SleepingLane(clock, 0.1, np.uint8) for _ in range(2)]
    assert pass_seconds(lanes) == pytest.approx(0.05)
    assert lanes[0].input.any()
