"""Read objects of the Hugging Face `datasets` library, without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costream.data.captions import CAPTION_FIELDS, clean_translations, find_field
from costream.data.dataset import DataSet
from costream.data.gather import Gatherer, ReadOptions, choose_split
from costream.data.picture import PictureSource, picture_digest
from costream.errors import DataError

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
"""Where the picture is looked for, in this order."""

ID_COLUMNS = ("image_id", "img_id", "imgid", "filename", "file_name", "__key__", "id")
"""Where a picture's id is looked for, in this order; rows with equal ids are merged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPicture:
    """A picture in a row of a table, read when it is needed.

    Attributes:
        table: The `datasets.Dataset`, its picture column set to give encoded bytes.
        row: Number of the row.
        column: Name of the picture column.
    """

    table: Any = field(repr=False)
    row: int
    column: str

    @property
    def name(self) -> str:
        """Row and column, for messages."""
        return f"row {self.row}, column {self.column!r}"

    def read(self) -> bytes:
        """Return the encoded picture.

        Returns:
            The bytes in the table, or of the file that it names.

        Raises:
            DataError: The row holds neither bytes nor a file that can be read.
        """
        value = self.table[self.row][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        try:
            return Path(value.get("path") or "").read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.name}: names the file {value.get('path')!r}, which cannot be read "
                f"({error.strerror or error}), expected a picture",
                hint="restore the file or leave the row out",
            ) from error


def is_hf(source: object) -> bool:
    """Whether an object comes from the `datasets` library, told by its class alone.

    Args:
        source: Anything.

    Returns:
        True for `Dataset`, `DatasetDict` and their iterable forms.

    Example:
        >>> is_hf([])
        False
    """
    return any(kind.__module__.split(".")[0] == "datasets" for kind in type(source).__mro__)


def read_hf(source: Any, options: ReadOptions) -> DataSet:
    """Read a `datasets.Dataset`, or one split of a `datasets.DatasetDict`.

    Args:
        source: The object; a picture column (one of `IMAGE_COLUMNS`, or the only column of that
            type) and a caption column (one of `CAPTION_FIELDS`, string or list of strings), or
            several caption columns called `caption_0`, `caption_1`, ...
        options: `split`, `image_field`, `caption_field`, `allow_missing` apply.

    Returns:
        One sample a picture; ids from one of `ID_COLUMNS`, else the row number; every other
        column becomes `meta`.

    Raises:
        DataError: It is a streaming data set, has no picture or caption column, the split is not
            named or absent, or one id stands for different pictures.
    """
    table = _table(source, options)
    image_column = _image_column(table, options)
    caption_columns = _caption_columns(table, options)
    id_column = find_field(dict.fromkeys(table.column_names), None, ID_COLUMNS)
    encoded = _undecoded(table, image_column)
    rest = table.remove_columns([name for name in table.column_names if _is_media(table, name)])
    empty = _rows_without_picture(encoded, image_column)
    used = {image_column, "translations", *caption_columns}
    gatherer = Gatherer(name=_name(table))
    seen: dict[str, PictureSource] = {}
    for number, row in enumerate(rest):
        where = f"row {number}"
        key = str(row[id_column]) if id_column is not None else str(number)
        if number in empty:
            gatherer.fail(where, f"has no picture in column {image_column!r}")
            continue
        image = _picture(encoded, number, image_column, row, where)
        if key in seen and not _same(seen[key], image):
            raise DataError(
                f"{where}: the id {key!r} (column {id_column!r}) stood for another picture before, "
                "expected one picture an id",
                hint="rename or remove the column: without one, rows are numbered",
            )
        seen.setdefault(key, image)
        gatherer.add(
            key,
            image,
            where=where,
            captions=_captions(row, caption_columns),
            translations=clean_translations(row.get("translations"), where),
            meta={name: value for name, value in row.items() if name not in used},
        )
    return gatherer.finish(options.allow_missing)


def _table(source: Any, options: ReadOptions) -> Any:
    kind = type(source).__name__
    if "Iterable" in kind:
        raise DataError(
            f"got a streaming {kind}, whose pictures cannot be counted or read twice, expected a "
            "datasets.Dataset",
            hint="load it with streaming=False",
        )
    if isinstance(source, Mapping):
        split = choose_split(
            {name: len(part) for name, part in source.items()}, options.split, kind
        )
        if split is not None or len(source) == 1:
            return source[next(iter(source)) if split is None else split]
        raise DataError(
            f"got split='all' for a {kind}, expected the name of one split",
            hint="join the splits with datasets.concatenate_datasets first",
        )
    if not hasattr(source, "column_names"):
        raise DataError(
            f"got a {kind} of the datasets library, expected a datasets.Dataset",
            hint="pass the object that datasets.load_dataset returns",
        )
    if options.split not in (None, "all", str(source.split)):
        raise DataError(
            f"got split={options.split!r} for a data set that is the split {str(source.split)!r}",
            hint="leave split= out, or pass the DatasetDict",
        )
    return source


def _name(table: Any) -> str:
    name = table.info.dataset_name or "datasets.Dataset"
    return f"{name}/{table.split}" if table.split is not None else str(name)


def _is_media(table: Any, column: str) -> bool:
    """Columns that decode on every access (pictures, sounds, videos), which may take seconds."""
    return type(table.features[column]).__name__ in {"Image", "Audio", "Video", "Pdf"}


def _image_column(table: Any, options: ReadOptions) -> str:
    columns = dict.fromkeys(table.column_names)
    found = find_field(columns, options.image_field, IMAGE_COLUMNS)
    typed = [name for name in columns if type(table.features[name]).__name__ == "Image"]
    if found is None and options.image_field is None and len(typed) == 1:
        found = typed[0]
    if found is None:
        raise _no_column(table, "a picture column", options.image_field, IMAGE_COLUMNS, "image")
    return found


def _caption_columns(table: Any, options: ReadOptions) -> list[str]:
    columns = dict.fromkeys(table.column_names)
    found = find_field(columns, options.caption_field, CAPTION_FIELDS)
    if found is not None:
        return [found]
    numbered = [name for name in columns if name.startswith("caption_") and name[8:].isdigit()]
    if options.caption_field is None and numbered:
        return sorted(numbered, key=lambda name: int(name[8:]))
    raise _no_column(table, "captions", options.caption_field, CAPTION_FIELDS, "caption")


def _no_column(
    table: Any, what: str, wanted: str | None, known: tuple[str, ...], option: str
) -> DataError:
    names = ", ".join(map(repr, known if wanted is None else (wanted,)))
    return DataError(
        f"got columns {', '.join(map(repr, table.column_names))}, expected {what} called {names}",
        hint=f"name it with {option}_field=",
    )


def _undecoded(table: Any, column: str) -> Any:
    feature = table.features[column]
    if type(feature).__name__ != "Image":
        return None
    # The feature's own class makes the cast, so that datasets need not be imported here.
    return table.cast_column(column, type(feature)(decode=False)).select_columns([column])


def _rows_without_picture(encoded: Any, column: str) -> frozenset[int]:
    # The count is free; only a table that has empty cells somewhere is gone through.
    if encoded is None or not encoded.data.column(column).null_count:
        return frozenset()
    return frozenset(number for number, row in enumerate(encoded) if row[column] is None)


def _picture(
    encoded: Any, number: int, column: str, row: Mapping[str, Any], where: str
) -> PictureSource:
    if encoded is not None:
        return RowPicture(table=encoded, row=number, column=column)
    value = row[column]
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, bytes):
        return value
    raise DataError(
        f"{where}: got a picture of type {type(value).__name__}, expected a path, encoded bytes "
        "or a datasets.Image column",
        hint=f"cast it: table.cast_column({column!r}, datasets.Image())",
    )


def _captions(row: Mapping[str, Any], columns: list[str]) -> Any:
    return row[columns[0]] if len(columns) == 1 else [row[column] for column in columns]


def _same(one: PictureSource, other: PictureSource) -> bool:
    return one == other or picture_digest(one) == picture_digest(other)
