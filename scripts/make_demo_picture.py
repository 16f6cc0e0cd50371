"""Make docs/images/demo.png: the page that `make demo` writes, as a browser shows it.

Needs Chromium. `python scripts/make_demo_picture.py docs/images/demo.png`
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH_PX, HEIGHT_PX = 1360, 2400


def main() -> None:
    """Run the demo, photograph its page and cut off what is empty."""
    target = Path(sys.argv[1])
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("Chromium is not installed, expected chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        demo = [sys.executable, "-m", "costream", "demo", "--out", folder, *sys.argv[2:]]
        subprocess.run(demo, check=True)
        shot = Path(folder, "shot.png")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        window = f"--window-size={WIDTH_PX},{HEIGHT_PX}"
        page = Path(folder, "results.html").as_uri()
        command = [browser, *options, window, f"--screenshot={shot}", page]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # it complains about D-Bus
        with Image.open(shot) as opened:
            picture = opened.convert("RGB")
    ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, ground).getbbox()
    bottom = picture.height if box is None else min(box[3] + 32, picture.height)
    picture = picture.crop((0, 0, picture.width, bottom))
    target.parent.mkdir(parents=True, exist_ok=True)
    # 256 colours: a third of the size, and no difference that shows in a page of this kind.
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
    print(f"{target}: {picture.width}x{picture.height}, {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
