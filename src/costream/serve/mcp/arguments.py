"""What a model may pass to each tool. Everything is checked before anything is done.

Unknown members are refused, so that a misspelt one is an error and not a silent default. Texts are
written for models: the schemas that they read are made of these classes.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from costream.errors import ConfigError

MAX_TOP = 100
MAX_SHOWN = 12
"""Pictures in one answer; clients refuse answers that are too large."""

Text = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"\S")]
Id = Annotated[str, Field(min_length=1, max_length=12_000)]
Words = Annotated[list[Text], Field(max_length=16)]
Where = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(
        max_length=32,
        description=(
            "Conditions KEY=VALUE that must all hold: path=/folder/ (beginning of the path), "
            "tag=WORD, modality=image|video|audio|text, after=2024-01-01, before=2024-06, or any "
            "metadata field such as camera.model=X100."
        ),
    ),
]
Top = Annotated[int, Field(ge=1, le=MAX_TOP, description="Most results.")]
Offset = Annotated[int, Field(ge=0, le=100_000, description="Results to pass over: next page.")]
Relevance = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Leave out results that are less sure to fit; 0.3 is a good start.",
    ),
]
WithPictures = Annotated[
    bool, Field(description=f"Also return the first {MAX_SHOWN} results as small JPEG pictures.")
]


class Arguments(BaseModel):
    """Arguments of some tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cut(Arguments):
    """How an answer is cut."""

    where: Where = []
    top: Top = 10
    offset: Offset = 0
    min_relevance: Relevance | None = None
    collapse_duplicates: Annotated[
        bool, Field(description="Of nearly the same pictures show only the best.")
    ] = False
    with_pictures: WithPictures = False


class SearchArguments(Cut):
    """Of `search`."""

    words: Annotated[
        Text | None,
        Field(description='What to find, in plain words: "a dog on a beach".'),
    ] = None
    plus: Annotated[Words, Field(description="Further words that results should be like.")] = []
    minus: Annotated[Words, Field(description="Words that results should not be like.")] = []
    like: Annotated[
        list[Id],
        Field(max_length=16, description="Ids of items that results should be like."),
    ] = []
    minus_like: Annotated[
        list[Id],
        Field(max_length=16, description="Ids of items that results should not be like."),
    ] = []


class SimilarArguments(Cut):
    """Of `find_similar`."""

    id: Annotated[Id, Field(description="Id of an item, from any other answer.")]


class GetArguments(Arguments):
    """Of `get_item`."""

    id: Annotated[Id, Field(description="Id of an item, from any other answer.")]
    with_picture: Annotated[bool, Field(description="Also return a small JPEG of it.")] = False


class ShowArguments(Arguments):
    """Of `show_pictures`."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_SHOWN, description="Ids of items.")]
    longest_side: Annotated[
        int, Field(ge=32, le=1024, description="Of each picture, in pixels.")
    ] = 384
    at_s: Annotated[
        float | None,
        Field(ge=0, description="For videos: which moment, in seconds; by default the begin."),
    ] = None


class ListArguments(Arguments):
    """Of `list_items`."""

    where: Where = []
    top: Top = 20
    offset: Offset = 0


class NoArguments(Arguments):
    """Of `describe_index`."""


def told(error: ValidationError, name: str) -> ConfigError:
    """What is wrong with arguments, for a model that is to try again.

    Args:
        error: What the check found.
        name: Of the tool.
    """
    lines = []
    for each in error.errors(include_url=False):
        place = ".".join(str(part) for part in each["loc"]) or "arguments"
        if each["type"] == "extra_forbidden":
            lines.append(f"{place}: there is no such argument")
        else:
            got = "" if each["type"] == "missing" else f"got {str(each['input'])[:100]!r}, "
            lines.append(f"{place}: {got}{each['msg'][:1].lower()}{each['msg'][1:]}")
    return ConfigError(
        f"wrong arguments for {name}: " + "; ".join(lines),
        hint="call it again as its input schema says",
    )
