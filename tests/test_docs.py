"""The programs that draw the pictures of docs/ run."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


def test_the_picture_of_the_augmentation(tmp_path):
    subprocess.run([sys.executable, DOCS / "augmentation.py", tmp_path / "a.png"], check=True, timeout=120)
    with Image.open(tmp_path / "a.png") as drawn, Image.open(DOCS / "augmentation.png") as kept:
        assert drawn.size == kept.size
