"""Take the picture docs/live_view.png: the page of `unetrt live --view`, in Chromium, after a minute of frames.

    python docs/live_view.py [FOLDER]       with FOLDER: also narrow and wide, dark and light, into that folder

The frames are an example image of the model `nuclei`, cut a little elsewhere in each frame. Their names and the size of
their pixels are made up.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from tifffile import imread
from useq import MDAEvent

from unetrt import BrowserView, LiveSegmenter

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "unetrt" / "models" / "examples" / "images" / "a7a581e6.tif"
PAGE = ROOT / "docs" / "live_view.png"
# Seconds of frames before the pictures, and between two frames.
MINUTE, PERIOD = 62.0, 0.25
# Width and height of the picture in docs, and of the others, in CSS pixels.
SIZE = (1280, 860)
SIZES = [SIZE, (420, 900), (900, 1000), (1400, 900)]


@contextmanager
def frames(live: LiveSegmenter) -> Iterator[None]:
    """Submit parts of the example until the end."""
    image = imread(EXAMPLE).astype(np.uint16) * 16
    noise = np.random.default_rng(0)
    stop = threading.Event()

    def feed() -> None:
        number = 0
        while not stop.wait(PERIOD * noise.uniform(0.6, 1.4)):
            top, left = round(20 + 20 * np.sin(number / 9)), round(30 + 30 * np.cos(number / 14))
            frame = image[top : top + 480, left : left + 630]
            frame = frame + noise.poisson(40, frame.shape).astype(np.uint16)
            event = MDAEvent(index={"t": number, "p": 0, "c": 0}, pos_name="Pos0", channel="DAPI")
            meta = {"camera_device": "Camera", "pixel_size_um": 0.325, "mda_event": event}
            live.submit(frame, dict(event.index), meta)
            number += 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def picture(driver: webdriver.Chrome, size: tuple[int, int], theme: str) -> Image.Image:
    """Return the page at a size, with a colour scheme, whole in height."""
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    time.sleep(0.5)
    high = driver.execute_script("return document.documentElement.scrollHeight")
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**screen, "height": max(high, size[1])})
    time.sleep(1.5)
    return Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def main(folder: Path | None) -> None:
    """Take the pictures."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        with LiveSegmenter("nuclei") as live, BrowserView(live) as view, frames(live):
            driver.get(view.url)
            time.sleep(MINUTE if folder is None else 10)
            if folder is None:
                picture(driver, SIZE, "dark").quantize(256).save(PAGE, optimize=True)
                return
            for size in SIZES:
                for theme in ("dark", "light"):
                    picture(driver, size, theme).save(folder / f"{size[0]}-{theme}.png")
    finally:
        driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
