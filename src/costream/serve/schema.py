"""What requests and answers look like. Everything is checked before anything is done.

Types are strict (a number in quotes is no number) and unknown members are refused, so that a
misspelt option is an error and not a silent default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_TOP = 1000
MAX_OFFSET = 100_000
MAX_TERMS = 16
MAX_TEXTS = 256
MAX_IMAGES = 32

Text = Annotated[
    str,
    Field(
        min_length=1, max_length=4000, pattern=r"\S", description="Words, never a path or a URL."
    ),
]
Weight = Annotated[
    float,
    Field(
        ge=-100,
        le=100,
        allow_inf_nan=False,
        description="How much the term counts; below 0 it is subtracted; not 0.",
    ),
]
Token = Annotated[
    str,
    Field(
        min_length=1,
        max_length=12_000,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Id of an item, as answers of this service give it.",
    ),
]
Base64 = Annotated[
    str,
    Field(min_length=1, description="A picture file (JPEG, PNG, WebP, ...) in base64."),
]
Where = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(max_length=32, description="Filters KEY=VALUE; all must hold."),
]
Top = Annotated[int, Field(ge=1, le=MAX_TOP)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
Relevance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class TextTerm(_Request):
    """Words that results should (or, with a negative weight, should not) be like."""

    text: Text
    weight: Weight = 1.0


class ImageTerm(_Request):
    """A picture that results should be like."""

    image: Base64
    weight: Weight = 1.0
    region: list[Share] | None = Field(
        default=None,
        min_length=4,
        max_length=4,
        description="Left, top, right, bottom of the part that counts, as shares of the picture.",
    )


class UrlTerm(_Request):
    """A picture by its URL; refused unless the service was started with --allow-fetch."""

    url: Annotated[str, Field(min_length=1, max_length=4096)]
    weight: Weight = 1.0


class LikeTerm(_Request):
    """An item of the index that results should be like; it is not among them."""

    like: Token
    weight: Weight = 1.0


def _kind(term: Any) -> str | None:
    """Which kind of term was meant, so that only its own errors are told."""
    members = term if isinstance(term, dict) else getattr(term, "__dict__", {})
    return next((name for name in ("text", "image", "url", "like") if name in members), None)


Term = Annotated[
    Annotated[TextTerm, Tag("text")]
    | Annotated[ImageTerm, Tag("image")]
    | Annotated[UrlTerm, Tag("url")]
    | Annotated[LikeTerm, Tag("like")],
    Discriminator(
        _kind,
        custom_error_type="term",
        custom_error_message="expected an object with one of text, image, url, like",
    ),
]
Terms = Annotated[list[Term], Field(min_length=1, max_length=MAX_TERMS)]


class _Cut(_Request):
    where: Where = []
    top: Top = 10
    offset: Offset = 0
    min_relevance: Relevance | None = None
    collapse_duplicates: bool = False


class SearchRequest(_Cut):
    """A question: terms that are added and subtracted, and how to cut the answer."""

    terms: Terms
    hybrid: bool = True


class SearchParameters(BaseModel):
    """The same as far as it fits into a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    q: Text | None = None
    plus: Annotated[list[Text], Field(max_length=MAX_TERMS)] = []
    minus: Annotated[list[Text], Field(max_length=MAX_TERMS)] = []
    like: Annotated[list[Token], Field(max_length=MAX_TERMS)] = []
    where: Where = []
    top: Top = 10
    offset: Offset = 0
    min_relevance: Relevance | None = None
    collapse_duplicates: bool = False
    hybrid: bool = True


class SimilarRequest(_Cut):
    """More like one item."""

    id: Token


class ExplainRequest(_Request):
    """Which parts of an item's picture match a question."""

    id: Token
    terms: Terms


class ItemsParameters(BaseModel):
    """A page of everything there is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sort: Literal["name", "date"] = "date"
    order: Literal["ascending", "descending"] = "descending"
    where: Where = []
    offset: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_TOP)] = 100


class EmbedRequest(_Request):
    """What to turn into vectors."""

    texts: Annotated[list[Text], Field(max_length=MAX_TEXTS)] = []
    images: Annotated[list[Base64], Field(max_length=MAX_IMAGES)] = []


class OpenAIEmbeddingRequest(_Request):
    """As OpenAI's clients send it; numbers of tokens are not taken, as every model has its own."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    model: Annotated[str, Field(min_length=1, max_length=500)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=100_000)] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None


class SessionRequest(_Request):
    """A key, in exchange for a cookie."""

    key: Annotated[str, Field(min_length=1, max_length=1000)]


class ItemAnswer(_Answer):
    """One item."""

    id: str
    name: str
    modality: str
    size_bytes: int
    date: float | None = Field(description="Seconds since 1970, UTC: taken, else last modified.")
    caption: str
    tags: list[str]
    meta: dict[str, object]
    path: str | None = Field(description="Only for the owner, on the same machine.")
    thumbnail: str | None = Field(description="Path of its URL, without ?size=.")
    original: str | None = Field(description="Path of its URL.")


class ResultAnswer(ItemAnswer):
    """One item found."""

    rank: int
    score: float
    relevance: float | None
    span: list[float | None] | None = Field(
        description="Start and end of the best moment, seconds."
    )
    reasons: dict[str, float] = Field(description="Score by stage.")
    duplicates: list[str]


class SearchAnswer(_Answer):
    """What was found."""

    results: list[ResultAnswer]
    total: int = Field(description="Items that were looked at.")
    exact: bool
    recall: float | None
    kernel: str
    nothing_relevant: bool
    unjudged: str = Field(description="Why results have no relevance; empty where they have one.")
    seconds: dict[str, float]


class ItemsAnswer(_Answer):
    """A page of items."""

    items: list[ItemAnswer]
    total: int


class ExplainAnswer(_Answer):
    """Why an item matches."""

    id: str
    score: float | None = Field(description="Cosine of the question and the item.")
    reasons: dict[str, float] = Field(description="Score by stage.")
    span: list[float | None] | None = Field(
        description="Start and end of the best moment, seconds."
    )
    grid: list[list[float]] | None = Field(
        description="By how much the score falls without each part of the picture; null where "
        "that cannot be told."
    )
    region: list[float] | None = Field(
        description="Left, top, right, bottom of what the grid covers, as shares of the picture."
    )


class EmbedAnswer(_Answer):
    """Vectors, and the space they live in."""

    texts: list[list[float]]
    images: list[list[float]]
    space: dict[str, object]


class OpenAIEmbedding(_Answer):
    """One vector, as OpenAI gives it."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(_Answer):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddingAnswer(_Answer):
    """As OpenAI gives it."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class ProblemAnswer(_Answer):
    """Why there is no answer (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    errors: list[str] | None = None
    error: dict[str, object] | None = Field(default=None, description="For OpenAI's clients.")


class AboutAnswer(_Answer):
    """What this service is."""

    version: str
    model: str | None
    dimensions: int | None
    items: int
    needs_key: bool
    shows_paths: bool
    allows_fetch: bool
    explains: bool


class StateAnswer(_Answer):
    """Whether the service can answer."""

    status: str
