"""What a question is: typed terms that are added or subtracted, and how the answer is to be cut.

A string is always text, never taken for the path of a picture: the type of a term says what it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from costream.errors import ConfigError

if TYPE_CHECKING:
    from costream.data.picture import PictureSource
    from costream.index.filters import Filter

Region: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""


@dataclass(frozen=True, slots=True)
class Words:
    """What to find, in words.

    Attributes:
        text: Of any language that the model knows.
        weight: How much it counts beside other terms; below 0 it is subtracted.

    Raises:
        ConfigError: The text is empty, or the weight is 0 or not finite.
    """

    text: str
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(
                f"got words of type {type(self.text).__name__}, expected a str",
                hint="a picture is a term of its own: Picture(path)",
            )
        if not self.text.strip():
            raise ConfigError("got an empty text, expected words", hint='Words("a red car")')
        _check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class Picture:
    """An example of what to find.

    Attributes:
        source: Path, encoded bytes, PIL image, or a picture stored in an archive.
        weight: How much it counts beside other terms; below 0 it is subtracted.
        region: The part of the upright picture that counts; None for all of it.

    Raises:
        ConfigError: The region is not within the picture or has no area, or the weight is 0 or not
            finite.
    """

    source: PictureSource
    weight: float = field(default=1.0, kw_only=True)
    region: Region | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if self.region is not None:
            check_region(self.region)


@dataclass(frozen=True, slots=True)
class Like:
    """An item of the index as an example; it is not among its own results.

    Attributes:
        id: Of the item.
        weight: How much it counts beside other terms; below 0 it is subtracted.

    Raises:
        ConfigError: The weight is 0 or not finite.
    """

    id: str
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _check_weight(self.weight)


Term: TypeAlias = Words | Picture | Like


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A question to a `Searcher`.

    Attributes:
        terms: What to find; their order does not matter.
        where: Conditions that results must meet; None for none.
        top: Most results, at least 1.
        offset: Results to leave out at the front, for the next page.
        min_relevance: Results below it are left out, 0 to 1; None to leave out none.
        hybrid: Whether names, captions, tags and found text count too, when the question is words
            only.
        collapse_duplicates: Whether of pictures that are nearly the same only the best is shown.
        product: Whether the terms' vectors are multiplied element by element instead of added, for
            models that were trained so; weights must be 1 then.

    Raises:
        ConfigError: There is no term, a number is out of range, or weighted terms are multiplied.

    Example:
        >>> Query(terms=(Words("a dog"), Words("snow", weight=-0.5)), top=3).top
        3
    """

    terms: tuple[Term, ...]
    where: Filter | None = None
    top: int = 10
    offset: int = 0
    min_relevance: float | None = None
    hybrid: bool = True
    collapse_duplicates: bool = False
    product: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.terms, str) or not all(
            isinstance(term, Words | Picture | Like) for term in self.terms
        ):
            raise ConfigError(
                f"got terms {self.terms!r}, expected Words, Picture or Like each",
                hint='Query(terms=(Words("a dog"),))',
            )
        if not self.terms:
            raise ConfigError(
                "got a query without terms, expected at least one",
                hint='Query(terms=(Words("a dog"),))',
            )
        if self.product and any(term.weight != 1 for term in self.terms):
            raise ConfigError(
                f"got weights {[term.weight for term in self.terms]} of terms to be multiplied, "
                "expected 1 each",
                hint="add the terms instead, or leave the weights out",
            )
        if self.top < 1 or self.offset < 0:
            raise ConfigError(
                f"got top={self.top} and offset={self.offset}, expected at least 1 and 0"
            )
        if self.min_relevance is not None and not 0 <= self.min_relevance <= 1:
            raise ConfigError(f"got min_relevance={self.min_relevance}, expected 0 to 1")


def check_region(region: Region) -> None:
    """Refuse a region that is no part of a picture.

    Args:
        region: Left, top, right, bottom as shares.

    Raises:
        ConfigError: It is not four numbers 0 <= left < right <= 1, 0 <= top < bottom <= 1.
    """
    fine = len(region) == 4 and all(math.isfinite(edge) for edge in region)
    if fine:
        left, top, right, bottom = region
        fine = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    if not fine:
        raise ConfigError(
            f"got the region {region}, expected left, top, right, bottom from 0 to 1",
            hint="the right half is (0.5, 0, 1, 1)",
        )


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError(
            f"got a term of weight {weight}, expected a number other than 0",
            hint="leave the term out, or give it a weight below 0 to subtract it",
        )
