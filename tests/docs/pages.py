"""The pages of the documentation as blocks, and the small world that their commands run in."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from clip_maker import cuts, write_clip
from costream.cli.demo import GALLERY

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SHELL = ("", "sh", "bash", "console", "shell")
PYTHON = ("python", "py")

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`\n]+)`")

PICTURES = {
    "husky": "a dog with blue eyes",
    "castle_in_park": "an old castle between trees",
    "people_on_beach": "people walk on a beach",
    "red_car": "a red car on a road",
    "kitten": "a small cat",
    "orange": "an orange",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        place: Page and line, for messages.
        language: After the fence; often empty.
        text: What is between the fences.
        reason: Why it is not run, from `<!-- not run: ... -->` before it; None when it is.
    """

    place: str
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block that say something."""
        lines = [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def blocks_of(page: str, name: str) -> list[Block]:
    """The blocks of a page.

    Args:
        page: Its text.
        name: Of the page, for messages.
    """
    found = [
        Block(
            place=f"{name}:{page.count(chr(10), 0, match.start('text'))}",
            language=match["language"],
            text=match["text"],
            reason=match["reason"],
        )
        for match in _FENCE.finditer(page)
    ]
    fences = sum(line.lstrip().startswith(("```", "~~~")) for line in page.splitlines())
    assert fences == 2 * len(found), f"{name} has a fence that is not understood"
    return found


def inline_code(page: str) -> list[str]:
    """What stands between single backticks outside of blocks."""
    return _INLINE.findall(_FENCE.sub("", page))


def make_world(folder: Path) -> Path:
    """Make the small world: everything that the pages name as being there before a command.

    - `~`, the home, is `home`; `~/Pictures` and `photos` hold six pictures of the sample gallery;
    - `clips/beach.mp4` shows two of them for a second each, `clips.jsonl` gives it a caption;
    - `holiday.jpg`, `dog.jpg` and `castle.jpg` are three of them;
    - `captions.jsonl`, `train.jsonl` and `dev.jsonl` give each of the six five captions, as Flickr
      has them.

    Args:
        folder: Where; made when absent.

    Returns:
        The home.
    """
    home = folder / "home"
    for place in (folder / "photos", home / "Pictures"):
        place.mkdir(parents=True)
        for name in PICTURES:
            shutil.copy(GALLERY / f"{name}.jpg", place)
    single = {"holiday": "people_on_beach", "dog": "husky", "castle": "castle_in_park"}
    for name, picture in single.items():
        shutil.copy(GALLERY / f"{picture}.jpg", folder / f"{name}.jpg")
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "beach.mp4", cuts(["husky", "people_on_beach"], 1.0))
    clip = {"video": "clips/beach.mp4", "captions": ["a dog, then people on a beach"]}
    (folder / "clips.jsonl").write_text(json.dumps(clip) + "\n", encoding="utf-8")
    variants = ("{}", "{} in daylight", "a picture of {}", "{}, seen from near", "there is {}")
    for manifest in ("captions", "train", "dev"):
        lines = [
            {"image": f"photos/{name}.jpg", "captions": [form.format(text) for form in variants]}
            for name, text in PICTURES.items()
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{manifest}.jsonl").write_text(text, encoding="utf-8")
    return home
