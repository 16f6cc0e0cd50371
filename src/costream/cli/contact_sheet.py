"""A page with what searches found: one file, no scripts, nothing loaded from outside.

Rows are justified: every picture keeps its proportions and nothing is cropped. A picture grows in
proportion to its width-to-height ratio (`--r`), so that all of a row end at the same height.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from costream.cli.results import shown_span
from costream.data.failures import printable
from costream.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from costream.search.records import Result

_THUMB_PX = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One query and what it found.

    Attributes:
        query: Words, or the path of an example picture.
        results: Best first.
    """

    query: str | Path
    results: Sequence[Result]


def write_contact_sheet(
    path: Path, sections: Sequence[Section], *, title: str = "costream"
) -> None:
    """Write the page; folders above it are made.

    Args:
        path: The HTML file.
        sections: One a query, in order.
        title: Of the page.

    Raises:
        DataError: When the file cannot be written.
    """
    page = contact_sheet(sections, title=title)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{printable(path)}: cannot be written ({error.strerror or error})",
            hint="choose another file, or make room",
        ) from error


def contact_sheet(sections: Sequence[Section], *, title: str = "costream") -> str:
    """The page as text.

    Args:
        sections: One a query, in order.
        title: Of the page.

    Returns:
        HTML with the pictures inside, of a clip that of its moment; files that are gone or broken
        are named instead of shown.

    Example:
        >>> page = contact_sheet([Section(query="a <b> & c", results=[])])
        >>> "a &lt;b&gt; &amp; c" in page
        True
    """
    body = "\n".join(_section(section) for section in sections)
    found = sum(len(section.results) for section in sections)
    searches = f"{len(sections)} search{'es' if len(sections) != 1 else ''}"
    results = f"{found} result{'s' if found != 1 else ''}"
    return _PAGE.format(
        title=escape(title), style=_STYLE, body=body, summary=f"{searches}, {results}"
    )


def _section(section: Section) -> str:
    # Scores of one query compare with each other only, so the bars are relative to its best.
    best = max((result.score for result in section.results), default=0.0)
    cards = "\n".join(_card(result, best) for result in section.results)
    grid = f'<div class="row">\n{cards}\n</div>' if cards else '<p class="none">nothing found</p>'
    return f"<section>\n{_heading(section.query)}\n{grid}\n</section>"


def _heading(query: str | Path) -> str:
    if isinstance(query, str):
        return f"<h2><q>{escape(query)}</q></h2>"
    thumb = _thumbnail(query)
    picture = "" if isinstance(thumb, str) else f'<img src="{_data_uri(thumb)}" alt="">'
    name = escape(printable(query.name))
    return f'<h2 class="example">{picture}<span>pictures like {name}</span></h2>'


def _card(result: Result, best: float) -> str:
    name = escape(printable(Path(result.path).name if result.path else result.id))
    full = escape(printable(result.path or result.id))
    when = "" if result.span is None else shown_span(result.span)
    share = max(0.0, result.score / best) if best > 0 else 0.0
    thumb = _thumbnail_of(result)
    if isinstance(thumb, str):
        ratio, shown = 4 / 3, f'<span class="gone">{escape(thumb)}</span>'
    else:
        # Panoramas and towers would make a row too low or too high.
        ratio = min(max(thumb.width / thumb.height, 0.5), 2.4)
        shown = f'<img src="{_data_uri(thumb)}" alt="{name}" loading="lazy">'
        target = escape(Path(os.path.abspath(str(result.path))).as_uri())  # noqa: PTH100
        if result.span is not None:
            target += f"#t={result.span[0]:.2f}"  # browsers begin to play there
            shown += f'<span class="when">{when}</span>'
        shown = f'<a href="{target}">{shown}</a>'
    return (
        f'<figure style="--r:{ratio:.3f};--s:{share:.3f}" title="{full}">'
        f'<div class="frame">{shown}<span class="rank">{result.rank}</span></div>'
        f'<figcaption><span class="name">{name}</span>'
        f'<span class="score">{result.score:.3f}</span></figcaption></figure>'
    )


def _thumbnail_of(result: Result) -> Image | str:
    """What a result looks like, a clip at its moment; or why nothing can be shown."""
    if result.path is None:
        return "has no file"
    if result.modality == "audio":
        return f"sound, {shown_span(result.span)}" if result.span else "sound"
    if result.modality == "video":
        return _thumbnail(Path(result.path), sum(result.span) / 2 if result.span else 0.0)
    return _thumbnail(Path(result.path))


def _thumbnail(path: Path, t: float | None = None) -> Image | str:
    """A small upright RGB picture (of a clip, at a moment), or why there is none."""
    from PIL import Image

    from costream.data.decode import open_image
    from costream.data.video import frame_at

    try:
        if t is None:
            picture = open_image(path, smallest_side=_THUMB_PX)
        else:
            picture = frame_at(path, t, smallest_side=_THUMB_PX)
    except DataError as error:
        return error.message.removeprefix(f"{printable(path)}: ")
    picture.thumbnail((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
    return picture


def _data_uri(picture: Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


_STYLE = """
:root { color-scheme: light dark; --ground: #f6f5f2; --card: #fff; --ink: #1c1b1a; --soft: #77726a;
  --line: #e3dfd8; --accent: #b4532a; --shadow: 0 1px 2px #0001, 0 6px 18px #0000000f; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #151412; --card: #201e1b; --ink: #f1eee8; --soft: #9b958b; --line: #35322d;
    --accent: #f0905f; --shadow: 0 1px 2px #0006, 0 6px 18px #0005; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1480px; padding: 2.5rem clamp(1rem, 3vw, 3rem) 4rem;
  background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
header { display: flex; align-items: baseline; justify-content: space-between; gap: 1rem;
  border-bottom: 1px solid var(--line); padding-bottom: .8rem; }
h1 { margin: 0; font-size: 1rem; font-weight: 650; letter-spacing: .02em; }
h1::before { content: ""; display: inline-block; width: .62em; height: .62em; margin-right: .5em;
  border-radius: 50%; background: var(--accent); }
header p { margin: 0; color: var(--soft); font-size: .875rem; }
section { margin-top: 2.6rem; }
h2 { margin: 0 0 1rem; font-size: clamp(1.35rem, 2.4vw, 1.9rem); font-weight: 600;
  letter-spacing: -.015em; line-height: 1.2; overflow-wrap: anywhere; }
h2 q { quotes: "\\201c" "\\201d"; }
h2 q::before, h2 q::after { color: var(--accent); }
.example { display: flex; align-items: center; gap: 1rem; }
.example img { height: 5.5rem; border-radius: 10px; box-shadow: var(--shadow); }
.row { display: flex; flex-wrap: wrap; gap: 14px; }
.row::after { content: ""; flex: 1e4 1 0; }
figure { flex: var(--r) 1 calc(var(--r) * 190px); max-width: calc(var(--r) * 300px); margin: 0;
  display: flex; flex-direction: column; overflow: hidden; border-radius: 12px;
  background: var(--card); box-shadow: var(--shadow); transition: transform .15s ease; }
figure:hover { transform: translateY(-2px); }
.frame { position: relative; aspect-ratio: var(--r); background: #fff; overflow: hidden; }
.frame a, .frame img { display: block; width: 100%; height: 100%; }
.frame img { object-fit: cover; }
.rank { position: absolute; top: 8px; left: 8px; min-width: 1.7em; padding: .1em .45em;
  border-radius: 99px; background: #000a; color: #fff; font-size: .78rem; font-weight: 600;
  text-align: center; font-variant-numeric: tabular-nums; backdrop-filter: blur(6px); }
.when { position: absolute; bottom: 8px; right: 8px; padding: .1em .5em; border-radius: 99px;
  background: #000a; color: #fff; font-size: .78rem; font-variant-numeric: tabular-nums; }
.gone { display: grid; place-items: center; height: 100%; padding: 1rem; background: var(--ground);
  color: var(--soft); font-size: .85rem; text-align: center; overflow-wrap: anywhere; }
figcaption { position: relative; display: flex; justify-content: space-between; gap: .75rem;
  padding: .55rem .75rem .6rem; font-size: .82rem; }
figcaption::before { content: ""; position: absolute; left: 0; top: 0; height: 2px;
  width: calc(var(--s) * 100%); background: var(--accent); }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.score { color: var(--soft); font-variant-numeric: tabular-nums; }
.none { color: var(--soft); }
@media print { figure { break-inside: avoid; box-shadow: none; border: 1px solid var(--line); } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{summary}</p></header>
{body}
</body>
</html>
"""
