"""What a saved model searches with: whoever searches by the name of a model asks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from costream.encoders.locate import DEFAULT_MODEL
from costream.search.engine import Searcher, TextEncoder

if TYPE_CHECKING:
    from costream.encoders.dual import DualEncoder
    from costream.index.forms import ItemForm
    from costream.index.protocol import SearchIndex
    from costream.scoring.protocol import RankStep, Scorer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SearchModel:
    """An encoder, and how its methods have items compared and ranked.

    Attributes:
        encoder: Questions to vectors.
        whole: The encoder, where methods take part: all of a model, in torch.
        form: For indexes of several vectors an item.
        steps: Rank steps, in order.
        scorer: Scores words and the best items as pairs.
    """

    encoder: TextEncoder
    whole: DualEncoder | None = None
    form: ItemForm | None = None
    steps: tuple[RankStep, ...] = ()
    scorer: Scorer | None = None

    def searcher(self, index: SearchIndex, encoder: TextEncoder | None = None) -> Searcher:
        """What answers questions to an index.

        Args:
            index: Where to search.
            encoder: In place of the model's own: one that does the same in another way, such as in
                batches.

        Raises:
            ConfigError: As of `Searcher`.
        """
        form = self.form_of(index)
        if form is not None:
            return Searcher(index, form, steps=self.steps)
        return Searcher(index, encoder or self.encoder, steps=self.steps, scorer=self.scorer)

    def form_of(self, index: SearchIndex) -> ItemForm | None:
        """The form of an index of several vectors an item; None where one vector is asked with."""
        if self.form is None:
            return None
        space = index.space
        return self.form if space is not None and space.kind == "multi" else None


def load_search_model(name_or_dir: str | Path, rank: Sequence[str] = ()) -> SearchModel:
    """A model by name: light, unless methods have a say in how items are ranked.

    Args:
        name_or_dir: As of `costream.load`.
        rank: Words of further methods that bring rank steps.

    Returns:
        The model with the scorer and the steps of the methods that it was saved with.

    Raises:
        ConfigError: A method is not there, brings no rank step, or does not fit the model.
        WeightsError: There is no such model, or it is damaged.
    """
    from costream.encoders.light.encoder import LightEncoder
    from costream.encoders.locate import saved_methods

    if not rank and not saved_methods(name_or_dir):
        return SearchModel(encoder=LightEncoder(name_or_dir))
    from costream.system import load_system

    system = load_system(name_or_dir, rank)
    # For good: what sets it for a call and back would do so under the calls of other threads.
    system.model.eval()
    parts = system.parts
    pairs = parts.scorer is not None and parts.scorer.cost == "pair"
    return SearchModel(
        encoder=system.model,
        whole=system.model,
        form=parts.index,
        steps=tuple(parts.rank),
        scorer=parts.scorer if pairs else None,
    )


def load_searcher(
    index: SearchIndex, name_or_dir: str | Path = DEFAULT_MODEL, rank: Sequence[str] = ()
) -> Searcher:
    """What answers questions to an index as `costream search` does, methods and all.

    Args:
        index: Where to search; not closed by the searcher.
        name_or_dir: The model that the index was made with, as of `costream.load`.
        rank: Words of further methods that bring rank steps.

    Returns:
        A searcher.

    Raises:
        ConfigError, WeightsError: As of `load_search_model`.

    Example:
        >>> import costream, tempfile
        >>> model = costream.load("cots-mini")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with costream.Index.open(folder, create=True) as index:
        ...         index.add([costream.Item(id="a")], model.encode_texts(["a cat"]), model.space)
        ...         query = costream.Query(terms=(costream.Words("a kitten"),))
        ...         answer = load_searcher(index, "cots-mini").answer(query)
        >>> answer.results[0].id
        'a'
    """
    return load_search_model(name_or_dir, rank).searcher(index)
