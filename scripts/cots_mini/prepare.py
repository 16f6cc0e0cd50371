"""Make the manifests that the default model is trained and measured on.

Photographs come from a folder in Flickr8k's form (`train.jsonl`, `dev.jsonl`, `images/`). Other
kinds of pictures widen the model where their folders are given: aerial views (RSICD), products,
exercises, and two Debian packages that this script asks `apt-get` for: drawings (`openclipart`)
and cut-out objects (`tuxpaint-stamps-default`).

    python scripts/cots_mini/prepare.py --data DIR --out prepared [--no-debian]

DIR holds the folders `flickr8k`, and as far as there are any `rsicd`, `fashion`, `exercises`. The
output has one folder a domain, each with `train.jsonl`, `dev.jsonl` and pictures of at most 256
pixels on the short side. Where a source has no dev split, every tenth item by a hash of its name is
held out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

SIDE_PX = 256
Record = tuple[Path, list[str]]


def held_out(name: str) -> bool:
    """Every tenth item, by a hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def captioned(folder: Path, split: str) -> Iterator[Record]:
    """Records of a folder with `train.jsonl` and `dev.jsonl` that have captions."""
    for record in read_lines(folder / f"{split}.jsonl"):
        yield folder / record["image"], list(dict.fromkeys(record["captions"]))


def products(folder: Path) -> Iterator[Record]:
    """Product pictures: the title, and colour and type as a shopper would type them."""
    for record in read_lines(folder / "items.jsonl"):
        kind = f"{record['colour']} {record['type']}".lower()
        yield folder / record["image"], [record["title"], kind]


def exercises(folder: Path) -> Iterator[Record]:
    """The starting picture of an exercise: its name, and what it trains with."""
    for record in read_lines(folder / "items.jsonl"):
        name = record["name"]
        tool = record.get("equipment") or "body only"
        captions = [name, f"a person doing {name.lower()}", f"{name.lower()}, {tool}"]
        yield folder / record["frames"][0], captions


def stamps(root: Path) -> Iterator[Record]:
    """Tux Paint's stamps: the first line of the text beside a picture is its English name."""
    for text in sorted(root.rglob("*.txt")):
        picture = text.with_suffix(".png")
        name = text.read_text(errors="replace").splitlines()[0].strip().rstrip(".!")
        if picture.exists() and name and not re.search(r"letter|digit|number", name.lower()):
            yield picture, [name, f"a picture of {name[:1].lower()}{name[1:]}"]


def drawings(root: Path) -> Iterator[Record]:
    """Open Clip Art: title and keywords of the SVG, pixels of the PNG of the same name."""
    tag = "{http://purl.org/dc/elements/1.1/}title"
    item = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
    for svg in sorted(root.rglob("*.svg")):
        picture = Path(str(svg.with_suffix(".png")).replace("/svg/", "/png/"))
        if not picture.exists():
            continue
        try:
            tree = ElementTree.parse(svg)  # noqa: S314 - a package of the distribution
        except (ElementTree.ParseError, LookupError, ValueError):
            continue
        title = next((e.text or "" for e in tree.iter(tag)), "").strip()
        title = re.sub(r"[_\-\d]+|\.svg$", " ", title).strip()
        if not title or "clipart" in title.lower():
            title = re.sub(r"_[a-z]+_?\.?_?\d*$|[\d]+", "", svg.stem).replace("_", " ").strip()
        words = [w.text.strip() for w in tree.iter(item) if w.text and w.text.strip()]
        words = [w for w in dict.fromkeys(words) if w.lower() not in {"externalsource", "clip art"}]
        if len(title) > 2:
            extra = [f"a drawing of {title.lower()}", ", ".join([title, *words[:4]])]
            yield picture, [title, *extra]


def shrink(source: Path, target: Path) -> bool:
    """Write a JPEG of at most `SIDE_PX` on the short side, alpha on white; False when unreadable.

    A JPEG that is small already is copied as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Image.open(source) as opened:
            if opened.format == "JPEG" and min(opened.size) <= 2 * SIDE_PX:
                shutil.copyfile(source, target)
                return True
            clear = "A" in opened.getbands() or opened.mode == "P"
            image = opened.convert("RGBA") if clear else opened
            if image.mode == "RGBA":
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            image = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
    scale = SIDE_PX / min(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    if max(image.size) > 4 * min(image.size):
        return False
    image.save(target, quality=88)
    return True


def write_domain(out: Path, train: list[Record], dev: list[Record]) -> None:
    """Write one domain's pictures and manifests."""
    for split, records in (("train", train), ("dev", dev)):
        lines = []
        for number, (source, captions) in enumerate(records):
            name = f"images/{split}-{number:05d}.jpg"
            if shrink(source, out / name):
                record = {"image": name, "captions": captions, "source": source.name}
                lines.append(json.dumps(record))
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{out.name} {split}: {len(lines)} pictures")


def split_by_hash(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Train and dev of a source without splits."""
    return (
        [r for r in records if not held_out(r[0].name)],
        [r for r in records if held_out(r[0].name)],
    )


def unpack_debian(packages: tuple[str, ...], working: Path) -> Path:
    """Download packages of the distribution and unpack them without installing."""
    subprocess.run(["apt-get", "download", *packages], cwd=working, check=True)
    for archive in working.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(archive), str(working / "root")], check=True)
    return working / "root"


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-debian", action="store_true")
    parser.add_argument("--debian-root", type=Path, help="packages that are unpacked already")
    options = parser.parse_args()
    for name in ("flickr8k", "rsicd"):
        folder = options.data / name
        if folder.is_dir():
            write_domain(
                options.out / name, [*captioned(folder, "train")], [*captioned(folder, "dev")]
            )
    for name, read in (("fashion", products), ("exercises", exercises)):
        if (options.data / name).is_dir():
            write_domain(options.out / name, *split_by_hash([*read(options.data / name)]))
    if options.no_debian:
        return 0
    with tempfile.TemporaryDirectory() as working:
        packages = ("tuxpaint-stamps-default", "openclipart-png", "openclipart-svg")
        root = options.debian_root or unpack_debian(packages, Path(working))
        write_domain(options.out / "stamps", *split_by_hash([*stamps(root)]))
        write_domain(options.out / "drawings", *split_by_hash([*drawings(root)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
