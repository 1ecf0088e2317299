"""Fixtures of the live view: a live segmenter without an engine, and a view of it that leaves no thread."""

import pytest

from tests.live_view.live_scenes import open_live, view_threads
from unetrt.live_view.browser import BrowserView


@pytest.fixture
def live():
    with open_live() as opened:
        yield opened


@pytest.fixture
def view(live):
    with BrowserView(live) as opened:
        yield opened
    assert view_threads() == []
