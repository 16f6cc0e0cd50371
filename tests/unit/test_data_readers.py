"""Law: the same pictures and captions give the same samples, whatever form they come in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from costream.data import DataSet, data_hash, open_image, read_data
from costream.errors import ConfigError, DataError

CAPTIONS = {
    "a.png": ["A red square .", "Something red"],
    "b.png": ["Ein grünes Quadrat", "緑の四角 🟩"],
    "c.png": ["مربع أزرق", "синий квадрат"],
}


def make_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in zip(CAPTIONS, ("red", "lime", "blue"), strict=True):
        Image.new("RGB", (8, 6), colour).save(folder / name)
    return folder


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def records(folder: str = "images/") -> list[dict[str, Any]]:
    return [{"image": folder + name, "captions": texts} for name, texts in CAPTIONS.items()]


def coco_document() -> dict[str, Any]:
    images = [{"id": 7 + n, "file_name": name, "width": 8} for n, name in enumerate(CAPTIONS)]
    annotations = [
        {"id": 100 * n + m, "image_id": 7 + n, "caption": text}
        for n, texts in enumerate(CAPTIONS.values())
        for m, text in enumerate(texts)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def karpathy_document(splits: tuple[str, ...] = ("train", "val", "restval")) -> dict[str, Any]:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for (name, texts), split in zip(CAPTIONS.items(), splits, strict=True)
    ]
    return {"images": images, "dataset": "flickr8k"}


def flickr_lines(form: str) -> str:
    rows = [(name, n, text) for name, texts in CAPTIONS.items() for n, text in enumerate(texts)]
    if form == "tokens":
        return "".join(f"{name}#{n}\t{text}\n" for name, n, text in rows)
    if form == "comma":
        return "image,caption\n" + "".join(f"{name},{text}\n" for name, _, text in rows)
    lines = (f"{name}| {n}| {text}\n" for name, n, text in rows)
    return "image_name| comment_number| comment\n" + "".join(lines)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(path: Path, pictures: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, texts in CAPTIONS.items():
            add_member(tar, name, (pictures / name).read_bytes())
            body = {"captions": texts, "width": 8}
            add_member(tar, name.replace(".png", ".json"), json.dumps(body).encode())
    return path


def check_content(data: DataSet) -> None:
    assert data.num_images == len(data) == 3
    assert data.num_captions == 6
    assert data.missing == ()
    for sample, (name, texts) in zip(data.samples, CAPTIONS.items(), strict=True):
        assert Path(name).stem in sample.id
        assert sample.group == sample.id
        assert sample.slots["text"] == tuple(texts)
        assert open_image(sample.slots["image"]).size == (8, 6)
    colours = [open_image(sample.slots["image"]).getpixel((0, 0)) for sample in data.samples]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


# --- the same content in every form ------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images")
    data = read_data(write_jsonl(tmp_path / "dev.jsonl", records()))
    check_content(data)
    assert data.name == f"{tmp_path.name}/dev"
    assert data.samples[0].id == "images/a.png"
    assert data.samples[0].slots["image"] == tmp_path / "images/a.png"


def test_json_list(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images")
    for indent in (None, 2):
        (tmp_path / "all.json").write_text(json.dumps(records(), indent=indent))
        check_content(read_data(tmp_path / "all.json"))


@pytest.mark.parametrize("place", [".", "images", "../images", "val2017", "../train2014"])
@pytest.mark.parametrize("indent", [None, 1])
def test_coco(tmp_path: Path, place: str, indent: int | None) -> None:
    folder = tmp_path / "annotations"
    make_pictures(folder / place)
    file = folder / "captions.json"
    file.write_text(json.dumps(coco_document(), indent=indent))
    data = read_data(file)
    check_content(data)
    assert data.samples[1].meta == {"id": 8, "width": 8}


@pytest.mark.parametrize("split", [None, "all"])
def test_karpathy_of_one_split_or_all(tmp_path: Path, split: str | None) -> None:
    make_pictures(tmp_path / "images")
    splits = ("test", "test", "test") if split is None else ("train", "val", "test")
    (tmp_path / "dataset.json").write_text(json.dumps(karpathy_document(splits)))
    data = read_data(tmp_path / "dataset.json", split=split)
    check_content(data)
    assert data.samples[0].meta["split"] == splits[0]


def test_karpathy_train_includes_restval_and_never_guesses(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "far" / "away")
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps(karpathy_document()))
    with pytest.raises(DataError, match=r"several splits: train \(2\), val \(1\).*split=\"NAME\""):
        read_data(file, images=pictures)
    data = read_data(file, images=pictures, split="train")
    assert [sample.id for sample in data.samples] == ["a.png", "c.png"]
    with pytest.raises(DataError, match=r"got split='test', expected one of: train \(2\), val"):
        read_data(file, images=pictures, split="test")


def test_karpathy_filepath_is_part_of_the_name(tmp_path: Path) -> None:
    make_pictures(tmp_path / "val2014")
    document = karpathy_document(("val", "val", "val"))
    for image in document["images"]:
        image["filepath"] = "val2014"
    (tmp_path / "dataset_coco.json").write_text(json.dumps(document))
    data = read_data(tmp_path / "dataset_coco.json")
    check_content(data)
    assert data.samples[0].id == "val2014/a.png"


@pytest.mark.parametrize("form", ["tokens", "comma", "bar"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_flickr_files(tmp_path: Path, form: str, ends: str) -> None:
    make_pictures(tmp_path / "Flicker8k_Dataset")
    file = tmp_path / "Flickr8k.token.txt"
    file.write_bytes(flickr_lines(form).replace("\n", ends).encode())
    check_content(read_data(file))


def test_flickr_comma_files_may_have_commas_in_captions(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    (tmp_path / "captions.txt").write_text('image,caption\na.png,"one, two"\na.png,three, four\n')
    assert read_data(tmp_path / "captions.txt").samples[0].slots["text"] == (
        "one, two",
        "three, four",
    )


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_webdataset(tmp_path: Path, mode: str) -> None:
    pictures = make_pictures(tmp_path / "images")
    data = read_data(write_tar(tmp_path / "shard.tar", pictures, mode))
    check_content(data)
    assert data.samples[0].id == "a"
    assert data.samples[0].meta == {"width": 8}
    assert isinstance(data.samples[0].slots["image"], bytes) == (mode != "w")


def test_webdataset_pictures_are_read_in_place_not_held(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "images")
    image = read_data(write_tar(tmp_path / "s.tar", pictures)).samples[0].slots["image"]
    assert image.read() == (pictures / "a.png").read_bytes()
    assert image.name.endswith("s.tar:a.png")


def test_webdataset_text_members_classes_and_shards(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "images")
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, name in enumerate(CAPTIONS):
        with tarfile.open(shards / f"{number}.tar", "w") as tar:
            add_member(tar, f"./d/{name}", (pictures / name).read_bytes())
            add_member(tar, f"./d/{name[0]}.txt", f" text {name}\n".encode())
            add_member(tar, f"./d/{name[0]}.json", b'{"caption": "other", "url": "u"}')
            add_member(tar, f"./d/{name[0]}.cls", b"3")
            add_member(tar, f"./d/{name[0]}.npy", b"ignored")
    data = read_data(shards)
    assert [sample.id for sample in data.samples] == ["d/a", "d/b", "d/c"]
    assert data.samples[2].slots["text"] == ("text c.png",)
    assert data.samples[2].meta == {"caption": "other", "url": "u", "cls": "3"}
    assert read_data(shards, caption_field="caption").samples[0].slots["text"] == ("other",)


def test_folder_of_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in" / "deep")
    data = read_data(tmp_path / "in")
    assert [sample.id for sample in data.samples] == ["deep/a.png", "deep/b.png", "deep/c.png"]
    assert (data.num_images, data.num_captions) == (3, 0)
    assert data.samples[0].slots["text"] == ()


def test_folder_with_one_manifest_means_the_manifest(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images")
    (tmp_path / "README.txt").write_text("about\n")
    (tmp_path / "settings.json").write_text('{"colour": "red"}')
    write_jsonl(tmp_path / "dev.jsonl", records())
    check_content(read_data(tmp_path))
    check_content(read_data(str(tmp_path)))
    write_jsonl(tmp_path / "train.jsonl", records())
    with pytest.raises(DataError, match=r"holds 2 manifests \(dev\.jsonl, train\.jsonl\)"):
        read_data(tmp_path)


# --- JSONL in detail ----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["caption", "text", "sentence", "sentences", "title"])
@pytest.mark.parametrize("image_field", ["image", "file_name"])
def test_usual_fields_are_found(tmp_path: Path, field: str, image_field: str) -> None:
    make_pictures(tmp_path)
    file = write_jsonl(tmp_path / "m.jsonl", [{image_field: "a.png", field: "hello", "x": 1}])
    sample = read_data(file).samples[0]
    assert sample.slots["text"] == ("hello",)
    assert sample.meta == {"x": 1}


def test_unusual_fields_are_named(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    file = write_jsonl(tmp_path / "m.jsonl", [{"shot": "a.png", "notes": ["x"], "title": "t"}])
    with pytest.raises(DataError, match=r"line 1: has 'shot', 'notes', 'title'; .*image_field="):
        read_data(file)
    sample = read_data(file, image_field="shot", caption_field="notes").samples[0]
    assert sample.slots["text"] == ("x",)
    assert sample.meta == {"title": "t"}
    with pytest.raises(DataError, match=r"expected the field 'words'; .*caption_field="):
        read_data(file, image_field="shot", caption_field="words")


def test_translations_become_slots(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    translations = {"de": "ein Hund", "ar": ["كلب", ""], "cs": ""}
    record = {"image": "a.png", "captions": ["a dog"], "translations": translations}
    slots = read_data(write_jsonl(tmp_path / "m.jsonl", [record])).samples[0].slots
    assert {name: slots[name] for name in slots if name != "image"} == {
        "text": ("a dog",),
        "text.de": ("ein Hund",),
        "text.ar": ("كلب",),
    }


def test_lines_of_one_picture_are_merged(tmp_path: Path) -> None:
    """Otherwise the picture's other captions would count as wrong answers."""
    make_pictures(tmp_path)
    lines = [
        {"image": "a.png", "caption": "one", "score": 1},
        {"image": "b.png", "caption": "two", "score": 2},
        {"image": "./a.png", "caption": "three", "score": 3},
    ]
    data = read_data(write_jsonl(tmp_path / "m.jsonl", lines))
    assert [sample.id for sample in data.samples] == ["a.png", "b.png"]
    assert data.samples[0].slots["text"] == ("one", "three")
    assert data.samples[0].meta == {"score": 1, "records": ({"score": 1}, {"score": 3})}


def test_split_field(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    lines = [
        {"image": name, "caption": name, "split": split}
        for name, split in zip(CAPTIONS, ("train", "dev", "train"), strict=True)
    ]
    file = write_jsonl(tmp_path / "m.jsonl", lines)
    assert read_data(file).num_images == read_data(file, split="all").num_images == 3
    assert [s.id for s in read_data(file, split="dev").samples] == ["b.png"]
    with pytest.raises(DataError, match=r"expected one of: dev \(1\), train \(2\)"):
        read_data(file, split="test")


def test_byte_order_mark_blank_lines_and_other_separators(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    one = json.dumps({"image": "a.png", "caption": "x\u2028y"}, ensure_ascii=False)
    two = json.dumps({"image": "b.png", "caption": "z"})
    content = f"\ufeff\n{one}\r\n\n   \n{two}"
    (tmp_path / "m.jsonl").write_text(content, encoding="utf-8", newline="")
    data = read_data(tmp_path / "m.jsonl")
    assert [sample.slots["text"] for sample in data.samples] == [("x\u2028y",), ("z",)]


def test_images_option_moves_the_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path / "far")
    file = write_jsonl(tmp_path / "m.jsonl", records(""))
    check_content(read_data(file, images=tmp_path / "far"))


# --- captions -----------------------------------------------------------------------------------


def test_every_language_emoji_and_length(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    texts = [
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "ภาษาไทย",
        "עברית",
        "हिन्दी",
        "မြန်မာ",
        "a\u0301 é",
        "word " * 9_999 + "word",
    ]
    data = read_data(write_jsonl(tmp_path / "m.jsonl", [{"image": "a.png", "captions": texts}]))
    assert data.samples[0].slots["text"] == tuple(texts)
    assert len(data.hash) == 64


def test_single_empty_captions_are_dropped_and_counted(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    record = {"image": "a.png", "captions": ["", "good", " \t\n", None, "\u3000"]}
    data = read_data(write_jsonl(tmp_path / "m.jsonl", [record]))
    assert data.samples[0].slots["text"] == ("good",)
    assert data.num_dropped_captions == 4


# --- fingerprint --------------------------------------------------------------------------------


def hash_of(folder: Path, lines: list[dict[str, Any]]) -> str:
    make_pictures(folder / "images")
    return data_hash(read_data(write_jsonl(folder / "m.jsonl", lines)))


def test_hash_does_not_depend_on_folder_or_order(tmp_path: Path) -> None:
    first = hash_of(tmp_path / "one", records())
    turned = [{**record, "captions": record["captions"][::-1]} for record in records()[::-1]]
    assert hash_of(tmp_path / "two", turned) == first
    (tmp_path / "one").rename(tmp_path / "three")
    assert read_data(tmp_path / "three" / "m.jsonl").hash == first


def test_hash_changes_with_a_picture_a_caption_a_name_a_language(tmp_path: Path) -> None:
    seen = {hash_of(tmp_path, records())}
    lines = records()
    lines[1]["captions"] = [lines[1]["captions"][0], lines[1]["captions"][1] + "!"]
    seen.add(hash_of(tmp_path, lines))
    seen.add(hash_of(tmp_path, records()[:2]))
    swapped = [
        {**record, "captions": texts}
        for record, texts in zip(
            records(), [*list(CAPTIONS.values())[1:], CAPTIONS["a.png"]], strict=True
        )
    ]
    seen.add(hash_of(tmp_path, swapped))
    seen.add(hash_of(tmp_path, [{**r, "translations": {"de": "x"}} for r in records()]))
    seen.add(hash_of(tmp_path, [{**r, "translations": {"fr": "x"}} for r in records()]))
    seen.add(hash_of(tmp_path, [{**r, "captions": ["".join(r["captions"])]} for r in records()]))
    (tmp_path / "images/d.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    renamed = records()
    renamed[0]["image"] = "images/d.png"
    seen.add(hash_of(tmp_path, renamed))
    with (tmp_path / "images/a.png").open("ab") as stream:
        stream.write(b"\0")
    seen.add(read_data(write_jsonl(tmp_path / "m.jsonl", records())).hash)
    assert len(seen) == 9


def test_hash_is_computed_once_and_only_when_asked(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images")
    data = read_data(write_jsonl(tmp_path / "m.jsonl", records()))
    first = data.hash
    (tmp_path / "images/a.png").unlink()
    assert data.hash == first
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        data_hash(data)


def test_hash_is_the_same_for_tar_and_files_with_equal_ids(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "images")
    plain = read_data(write_tar(tmp_path / "a.tar", pictures))
    pressed = read_data(write_tar(tmp_path / "b.tar.gz", pictures, "w:gz"))
    assert plain.hash == pressed.hash


def test_hash_by_hand(tmp_path: Path) -> None:
    import hashlib

    make_pictures(tmp_path)
    data = read_data(write_jsonl(tmp_path / "m.jsonl", [{"image": "a.png", "caption": "é"}]))
    content = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    line = f'["a.png", [["text", ["\\u00e9"]]], "{content}"]\n'
    assert data.hash == hashlib.sha256(line.encode()).hexdigest()


# --- options ------------------------------------------------------------------------------------


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "images")
    with pytest.raises(ConfigError, match="got split= for a source of the form 'folder'"):
        read_data(pictures, split="train")
    with pytest.raises(ConfigError, match=r"takes only caption_field, allow_missing"):
        read_data(write_tar(tmp_path / "a.tar", pictures), images=pictures)
    with pytest.raises(ConfigError, match="allow_missing=-1"):
        read_data(pictures, allow_missing=-1)


def test_a_caption_that_is_a_file_name_stays_text(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    record = {"image": "a.png", "caption": str(tmp_path / "b.png")}
    sample = read_data(write_jsonl(tmp_path / "m.jsonl", [record])).samples[0]
    assert sample.slots["text"] == (str(tmp_path / "b.png"),)


def test_pictures_are_not_decoded_by_reading(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    file = write_jsonl(tmp_path / "m.jsonl", [{"image": "a.png", "caption": "x"}])
    assert read_data(file).num_images == 1


def test_samples_of_a_tar_can_go_to_another_process(tmp_path: Path) -> None:
    import pickle

    pictures = make_pictures(tmp_path / "images")
    data = read_data(write_tar(tmp_path / "s.tar", pictures))
    again = pickle.loads(pickle.dumps(data))  # noqa: S301  our own bytes
    assert np.array_equal(
        np.asarray(open_image(again.samples[1].slots["image"])),
        np.asarray(open_image(data.samples[1].slots["image"])),
    )
