"""Law: an object of the datasets library gives the same samples as the files it was made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from costream.data import open_image, read_data
from costream.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (8, 6), colour) for colour in COLOURS]


def table(**columns: Any) -> Any:
    return datasets.Dataset.from_dict(
        {"image": pictures(), **columns},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                **{
                    name: datasets.List(datasets.Value("string"))
                    if isinstance(values[0], list)
                    else datasets.Value("string" if isinstance(values[0], str) else "int64")
                    for name, values in columns.items()
                },
            }
        ),
    )


def test_pictures_and_caption_lists() -> None:
    data = read_data(table(captions=[["a", "b"], ["c"], ["d", ""]], label=[1, 2, 3]))
    assert (data.num_images, data.num_captions, data.num_dropped_captions) == (3, 4, 1)
    assert [sample.id for sample in data.samples] == ["0", "1", "2"]
    assert data.samples[1].meta == {"label": 2}
    colours = [open_image(sample.slots["image"]).getpixel((0, 0)) for sample in data.samples]
    assert colours == list(COLOURS.values())
    assert data.hash == read_data(table(captions=[["b", "a"], ["c"], ["d"]])).hash


@pytest.mark.parametrize("column", ["caption", "text", "sentence", "title"])
def test_usual_columns(column: str) -> None:
    data = read_data(table(**{column: ["x", "y", "z"]}))
    assert [sample.slots["text"] for sample in data.samples] == [("x",), ("y",), ("z",)]


def test_numbered_caption_columns() -> None:
    columns = {f"caption_{number}": [f"{row}{number}" for row in "abc"] for number in (10, 2, 1)}
    assert read_data(table(**columns)).samples[0].slots["text"] == ("a1", "a2", "a10")


def test_named_columns() -> None:
    named = table(notes=["x", "y", "z"]).rename_column("image", "shot")
    with pytest.raises(DataError, match=r"got columns 'shot', 'notes', expected captions"):
        read_data(named)
    data = read_data(named, image_field="shot", caption_field="notes")
    assert data.samples[2].slots["text"] == ("z",)


def test_rows_of_one_picture_are_merged() -> None:
    red = Image.new("RGB", (4, 4), "red")
    rows = {"image": [red, red, Image.new("RGB", (4, 4))], "caption": ["a", "b", "c"]}
    merged = datasets.Dataset.from_dict({**rows, "image_id": [5, 5, 6]}).cast_column(
        "image", datasets.Image()
    )
    data = read_data(merged)
    assert [(s.id, s.slots["text"]) for s in data.samples] == [("5", ("a", "b")), ("6", ("c",))]
    wrong = merged.remove_columns("image_id").add_column("image_id", [5, 6, 6])
    with pytest.raises(DataError, match=r"the id '6' .* stood for another picture"):
        read_data(wrong)


def test_selected_and_shuffled_rows() -> None:
    data = read_data(table(caption=["x", "y", "z"]).select([2, 0]))
    assert [sample.slots["text"] for sample in data.samples] == [("z",), ("x",)]
    assert open_image(data.samples[0].slots["image"]).getpixel((0, 0)) == (0, 0, 255)


def test_a_row_without_picture_is_missing() -> None:
    rows = {"image": [pictures()[0], None], "caption": ["x", "y"]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    holed = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(DataError, match="row 1 has no picture in column 'image'"):
        read_data(holed)
    assert read_data(holed, allow_missing=1).missing[0].path == "row 1"


def test_paths_in_a_text_column_and_in_a_picture_column(tmp_path: Path) -> None:
    for name, image in zip("abc", pictures(), strict=True):
        image.save(tmp_path / f"{name}.png")
    rows = {"image": [str(tmp_path / f"{n}.png") for n in "abc"], "caption": ["x", "y", "z"]}
    plain = datasets.Dataset.from_dict(rows)
    data = read_data(plain)
    assert data.samples[0].slots["image"] == tmp_path / "a.png"
    cast = read_data(plain.cast_column("image", datasets.Image()))
    assert cast.hash == data.hash
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match="1 of 3 records cannot be used"):
        read_data(plain)
    with pytest.raises(DataError, match=r"row 1.*cannot be read"):
        open_image(cast.samples[1].slots["image"])


def test_saved_data_set_is_named(tmp_path: Path) -> None:
    table(caption=["x", "y", "z"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="load_from_disk"):
        read_data(tmp_path / "saved")
    assert read_data(datasets.load_from_disk(tmp_path / "saved")).num_images == 3


def test_several_splits_are_never_guessed() -> None:
    whole = table(caption=["x", "y", "z"])
    both = datasets.DatasetDict({"train": whole.select([0, 1]), "test": whole.select([2])})
    with pytest.raises(DataError, match=r"several splits: test \(1\), train \(2\)"):
        read_data(both)
    assert read_data(both, split="train").num_images == 2
    with pytest.raises(DataError, match="concatenate_datasets"):
        read_data(both, split="all")
    assert read_data(datasets.DatasetDict({"only": whole})).num_images == 3


def test_streams_and_useless_options_are_refused() -> None:
    whole = table(caption=["x", "y", "z"])
    with pytest.raises(DataError, match=r"streaming .*streaming=False"):
        read_data(whole.to_iterable_dataset())
    with pytest.raises(ConfigError, match="got images= for a source of the form 'datasets object'"):
        read_data(whole, images=".")


def test_the_library_is_not_imported_by_us() -> None:
    code = (
        "import sys; import costream.data\n"
        "try: costream.data.read_data(3)\n"
        "except costream.data.detect.DataError as error: print(error)\n"
        "assert not {'datasets', 'torch', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "got a source of type int, expected the path of a folder" in done.stdout
