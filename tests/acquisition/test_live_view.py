"""What the browser view shows of an acquisition by the real Micro-Manager core."""

from useq import MDASequence

from tests.live_view.live_scenes import open_live
from tests.live_view.test_browser_pictures import decoded
from unetrt.live_view.pictures import encoded


def test_a_picture_names_position_and_pixel_size(core):
    sequence = MDASequence(
        stage_positions=[{"x": 0, "y": 0, "name": "../well <A1>"}, (10, 0)],
        channels=[{"config": "DAPI", "exposure": 1}],
        axis_order="pc",
    )
    with open_live() as live:
        results = live.results()
        core.mda.run(sequence, output=[live])
        assert live.flush(30)
        live.close()
        heads = [decoded(encoded(result))[0] for result in results]
    assert [head["position"] for head in heads] == ["../well <A1>", ""]
    assert [head["pixel_size"] for head in heads] == [core.getPixelSizeUm()] * 2
    assert core.getPixelSizeUm() > 0
