"""XMAI: cross-modal attribute insertions, a test of how robust retrieval by captions is.

Idea: insert before a noun of a caption a word that a language model finds likely, that fits what a
detector sees in the picture, and that takes the caption away from the picture by a model's own
score. A caption that still says the truth should still find its picture.

Equations: of the k likeliest words for a slot, with A the language model's probability, B the
greatest cosine of the word with an attribute of the object, D = 1 - cos(caption with it, picture),
each scaled to [0, 1] over the k words:

    score = (l1 A + l2 B + l3 D) / (|l1| + |l2| + |l3|);  the word of the greatest score is inserted

Shapes: C captions, k words a slot.

Source: Ramshetty, Verma, Kumar, "Cross-Modal Attribute Insertions for Assessing the Robustness of
Vision-and-Language Learning" (ACL 2023); read: released code and executed notebooks. From memory:
nothing that is used here.

Differs: a count of neighbours in a caption corpus stands for BERT, so words are whole words; word
vectors are those of the attacked model's text tower; punctuation after a noun blocks no slot; the
gallery of a block holds each picture once, and captions that are not changed are measured, too.
Objects and attributes are those in the data (`meta["objects"]`: scene graphs, or names with
attributes). Where there are none, nouns of the corpus stand for detected objects, and for their
attributes those of a short list that the attacked model itself finds nearest to the picture: then
nobody says whether an inserted word is true.

Costs: k texts a slot are encoded. Index impact: none.

Claim: grounded insertions that are true take away little, adversarial ones more, and on a model
that they were not made for, less; what is taken away by false words is no lack of robustness, so
the share of true words stands beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costream.config import Range
from costream.data.dataset import picture_of
from costream.errors import DataError
from costream.methods._xmai.words import (
    ATTRIBUTES,
    STOP_WORDS,
    Slot,
    WordModel,
    bleu,
    direct_slots,
    insert,
    nouns_of,
    words_of,
)
from costream.parts import Base, Parts
from costream.records import Report

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.encoders.dual import DualEncoder
    from costream.evaluate import ClaimOptions, ClaimTable
    from costream.parts import System
    from costream.records import Sample

CARD = {
    "name": "xmai",
    "title": "XMAI: Cross-Modal Attribute Insertions",
    "paper": "Ramshetty et al., ACL 2023",
    "year": 2023,
    "kind": "robustness evaluation",
    "slots": ("evaluation",),
    "index_impact": "none",
    "summary": "Inserts likely, fitting, misleading words before nouns and measures what "
    "text-to-image retrieval loses, with the share of inserted words that are true.",
    "scale": "Published with a CLIP that ranks COCO with an MRR of 0.63, of which insertions take "
    "a sixth, and attributes of a detector. A model must rank well before words can take much "
    "away.",
}

Weight = Annotated[float, Range(0)]
_SCANNED = 20
_DEFINITIONS = {
    "mrr": "Mean over captions of 1 / rank of the picture in percent, in blocks of captions and "
    "their pictures; equal scores get their expected rank.",
    "mrr_optimistic": "The same, the true picture first among equal scores, as the released code.",
    "mrr_pessimistic": "The same, the true picture last among equal scores.",
    "image_cosine": "Mean cosine in percent of caption and picture by the attacked model.",
    "text_cosine": "Mean cosine in percent of changed and original caption by the attacked model.",
    "bleu": "Smoothed BLEU-4 in percent against the original caption.",
    "changed": "Share of captions in percent that were changed.",
    "true": "Share in percent of inserted words that the data gives the object; only where the "
    "data knows the objects.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of XMAI; the defaults are those of the published experiments.

    Attributes:
        likely: Weight l1 of the language model.
        fitting: Weight l2 of the attributes of what is seen.
        misleading: Weight l3 of the attacked model's distance.
        k: Words compared a slot.
        similar: Least cosine at which a word counts as the name of an object.
        prefix: Put before captions when they are compared with pictures to choose a word.
        block: Captions measured together; a last, smaller block is dropped unless it is the only.
        most_captions: Most captions that are measured; 0 for all.
        corpus: Captions that the language model counts, as of `costream.read_data`; those that are
            measured when None.
        attack: Model that words are chosen against, by name or folder; the one that is measured
            when None. Another one makes it a test of transfer.
        shuffle_seed: Of the order of captions and of deletions.
    """

    likely: Weight = 1.0
    fitting: Weight = 5.0
    misleading: Weight = 5.0
    k: Annotated[int, Range(1, 20)] = 3
    similar: Annotated[float, Range(0, 1)] = 0.7
    prefix: str = "This is "
    block: Annotated[int, Range(2)] = 1000
    most_captions: Annotated[int, Range(0)] = 1000
    corpus: str | None = None
    attack: str | None = None
    shuffle_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One object of a picture.

    Attributes:
        names: What it may be called.
        attributes: What it is like.
    """

    names: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inserted:
    """A changed caption.

    Attributes:
        text: As it is now.
        words: Place in the original caption, word, and the slot that it went into.
    """

    text: str
    words: tuple[tuple[int, str, Slot], ...] = ()


# --- the equations ---


def scaled(values: ArrayLike) -> NDArray[np.float64]:
    """Values scaled to [0, 1]; where all are equal, 0 counts as the least.

    Example:
        >>> scaled([0.1, 0.9, 0.4]).round(3)
        array([0.   , 1.   , 0.375])
        >>> scaled([0.5, 0.5])
        array([1., 1.])
    """
    given = np.asarray(values, dtype=np.float64)
    low, high = float(given.min()), float(given.max())
    if low == high:
        low = 0.0
    return (given - low) / (high - low) if high != low else np.zeros_like(given)


def word_scores(
    likely: ArrayLike, fitting: ArrayLike, misleading: ArrayLike, weights: Sequence[float]
) -> NDArray[np.float64]:
    """The score of each of k words.

    Args:
        likely: Probability of each.
        fitting: Greatest cosine of each with an attribute.
        misleading: Distance of the caption with each from the picture.
        weights: l1, l2, l3, not all 0.

    Example:
        >>> word_scores([.5, .3, .2], [.1, .9, .4], [.70, .72, .74], (1, 5, 5)).round(4)
        array([0.0909, 0.7121, 0.625 ])
    """
    parts = (scaled(likely), scaled(fitting), scaled(misleading))
    total = sum(abs(weight) for weight in weights)
    return np.asarray(
        sum(weight * part for weight, part in zip(weights, parts, strict=True)) / total
    )


# --- what is seen ---


def seen_in(sample: Sample) -> tuple[Seen, ...] | None:
    """The objects that the data knows of a picture: a scene graph, or a detector's; None if none.

    Raises:
        DataError: An object of `meta["objects"]` has no name.
    """
    from costream.data.scenes import SHAPES, SceneObject

    found = []
    for each in sample.meta.get("objects", ()):
        if isinstance(each, SceneObject):
            found.append(Seen(names=SHAPES[each.shape], attributes=(each.colour,)))
        elif isinstance(each, Mapping) and isinstance(each.get("name"), str):
            attributes = tuple(str(one) for one in each.get("attributes", ()))
            found.append(Seen(names=(each["name"],), attributes=attributes))
        else:
            raise DataError(
                f"an object of {sample.id!r} is {each!r}, expected a name and attributes",
                hint='"objects": [{"name": "dog", "attributes": ["black"]}]',
            )
    return tuple(found) if "objects" in sample.meta else None


class Attacked:
    """What is asked of the model that words are chosen against; vectors are kept.

    Args:
        model: The model.
        samples: Pictures, all of which it sees once.
    """

    def __init__(self, model: DualEncoder, samples: Sequence[Sample]) -> None:
        self._model = model
        self.pictures = model.encode_images([picture_of(sample) for sample in samples])
        self._texts: dict[str, NDArray[np.float32]] = {}

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (C, D) of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts |= dict(zip(new, self._model.encode_texts(new), strict=True))
        return np.stack([self._texts[text] for text in texts])

    def nearest_attributes(self, noun: str, picture: int, count: int = 3) -> tuple[str, ...]:
        """The common attributes that, with a noun, are nearest to a picture."""
        near = self.texts([f"{word} {noun}" for word in ATTRIBUTES]) @ self.pictures[picture]
        return tuple(ATTRIBUTES[place] for place in np.argsort(-near, kind="stable")[:count])


class Inserter:
    """Makes changed captions.

    Args:
        config: Weights and sizes.
        attacked: The model that words are chosen against.
        model: Likely words.
        nouns: Names of objects for pictures of which the data knows none.
    """

    def __init__(
        self, config: Config, attacked: Attacked, model: WordModel, nouns: frozenset[str]
    ) -> None:
        self._config, self._attacked, self._model, self._nouns = config, attacked, model, nouns

    def slots(self, caption: str, picture: int, seen: tuple[Seen, ...] | None) -> list[Slot]:
        """Slots of a caption: names as written, else words that mean nearly the same."""
        if seen is None:
            names = [(word,) for word in dict.fromkeys(words_of(caption)) if word in self._nouns]
            return direct_slots(caption, names)
        found = direct_slots(caption, [one.names for one in seen])
        return found or self._similar_slots(caption, seen)

    def _similar_slots(self, caption: str, seen: Sequence[Seen]) -> list[Slot]:
        words = [word for word in dict.fromkeys(words_of(caption)) if word not in STOP_WORDS]
        if not words or not seen:
            return []
        names = [(number, name) for number, one in enumerate(seen) for name in one.names]
        near = self._attacked.texts(words) @ self._attacked.texts([name for _, name in names]).T
        close = near >= self._config.similar
        found = []
        for row, word in enumerate(words):
            owners = tuple(dict.fromkeys(names[column][0] for column in np.flatnonzero(close[row])))
            if owners:
                found += [
                    Slot(start=slot.start, noun=slot.noun, objects=owners)
                    for slot in direct_slots(caption, [(word,)])
                ]
        return sorted(found, key=lambda slot: slot.start)

    def candidates(self, caption: str, slot: Slot) -> list[tuple[str, float]]:
        """The likeliest words that may go into a slot, with their probabilities."""
        before = words_of(caption[: slot.start])
        left = before[-1] if before else "<s>"
        noun = words_of(slot.noun)[0]
        banned = STOP_WORDS | {noun, *before[-3:]}
        likely = self._model.best(left, noun, _SCANNED)
        return [pair for pair in likely if pair[0] not in banned][: self._config.k]

    def attributes(self, slot: Slot, picture: int, seen: tuple[Seen, ...] | None) -> list[str]:
        """What the objects of a slot are like."""
        if seen is None:
            return list(self._attacked.nearest_attributes(slot.noun.lower(), picture))
        return [word for number in slot.objects for word in seen[number].attributes]

    def insert(
        self,
        caption: str,
        picture: int,
        seen: tuple[Seen, ...] | None,
        weights: tuple[float, float, float],
    ) -> Inserted:
        """A caption with a word before each noun that has candidates."""
        words: list[tuple[int, str, Slot]] = []
        for slot in self.slots(caption, picture, seen):
            found = self.candidates(caption, slot)
            if not found:
                continue
            placed = [(start, word) for start, word, _ in words]
            options = [insert(caption, [*placed, (slot.start, word)]) for word, _ in found]
            scores = word_scores(
                [mass for _, mass in found],
                self._fit([word for word, _ in found], slot, picture, seen, weights[1]),
                self._distance(options, picture, weights[2]),
                weights,
            )
            words.append((slot.start, found[int(scores.argmax())][0], slot))
        text = insert(caption, [(start, word) for start, word, _ in words])
        return Inserted(text=text, words=tuple(words))

    def _fit(
        self,
        words: Sequence[str],
        slot: Slot,
        picture: int,
        seen: tuple[Seen, ...] | None,
        weight: float,
    ) -> NDArray[np.float64]:
        known = self.attributes(slot, picture, seen) if weight else []
        if not known:
            return np.zeros(len(words))
        near = self._attacked.texts(words) @ self._attacked.texts(known).T
        return np.asarray(near.max(axis=1), dtype=np.float64)

    def _distance(self, options: Sequence[str], picture: int, weight: float) -> NDArray[np.float64]:
        if not weight:
            return np.zeros(len(options))
        texts = [self._config.prefix + option for option in options]
        return np.asarray(1.0 - self._attacked.texts(texts) @ self._attacked.pictures[picture])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A caption that is measured.

    Attributes:
        picture: Its picture, by number.
        text: As it is written.
    """

    picture: int
    text: str


class AttributeInsertions:
    """The evaluation (an `Evaluation`): what each way to change captions does to retrieval.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def run(self, system: System, data: DataSet) -> Report:
        """Measure a system on captioned pictures.

        Args:
            system: What to measure, by its own scores.
            data: Captioned pictures.

        Raises:
            DataError: A picture is broken, or there are fewer than two captions.
            WeightsError: There is no model to attack of that name.
        """
        from costream.evaluate.retrieval import describe_data
        from costream.evaluate.systems import describe_system

        pairs = choose(data, self._config)
        changed, attacked = self.change(system, data, pairs)
        metrics = {}
        for arm, texts in changed.items():
            ranks = measure(system, data.samples, pairs, [one.text for one in texts], self._config)
            quality = qualities(attacked, data.samples, pairs, texts)
            metrics[arm] = {**ranks, **quality}
        described = describe_system(system) | {"attacked": self._config.attack or "itself"}
        used = {metric for values in metrics.values() for metric in values}
        return Report(
            metrics=metrics,
            definitions={name: text for name, text in _DEFINITIONS.items() if name in used},
            data=describe_data(data, ()) | {"measured captions": len(pairs)},
            model=described,
        )

    def change(
        self, system: System, data: DataSet, pairs: Sequence[Pair]
    ) -> tuple[dict[str, list[Inserted]], Attacked]:
        """Captions changed in every way, and the model that they were chosen against."""
        from costream.data import read_data
        from costream.encoders.storage import load

        config = self._config
        model = system.model if config.attack is None else load(config.attack)
        source = data if config.corpus is None else read_data(config.corpus)
        corpus = [text for sample in source.samples for text in sample.slots.get("text", ())]
        attacked = Attacked(model, data.samples)
        inserter = Inserter(config, attacked, WordModel(corpus), nouns_of(corpus))
        seen = [seen_in(sample) for sample in data.samples]
        weights = {
            "language_model": (1.0, 0.0, 0.0),
            "grounded": (config.likely, config.fitting, 0.0),
            "adversarial": (config.likely, config.fitting, config.misleading),
        }
        changed = {"original": [Inserted(text=pair.text) for pair in pairs]}
        changed["deletion"] = deleted(pairs, config.shuffle_seed)
        for arm, three in weights.items():
            if sum(three):
                changed[arm] = [
                    inserter.insert(pair.text, pair.picture, seen[pair.picture], three)
                    for pair in pairs
                ]
        return changed, attacked


def choose(data: DataSet, config: Config) -> list[Pair]:
    """Captions in random order, in whole blocks.

    Raises:
        DataError: There are fewer than two captions.
    """
    pairs = [
        Pair(picture=number, text=text)
        for number, sample in enumerate(data.samples)
        for text in dict.fromkeys(sample.slots.get("text", ()))
    ]
    if len(pairs) < 2:
        raise DataError(
            f"{data.name!r} has {len(pairs)} captions, expected at least 2", hint="add captions"
        )
    order = np.random.default_rng(config.shuffle_seed).permutation(len(pairs))
    most = len(pairs) if not config.most_captions else min(config.most_captions, len(pairs))
    whole = most // config.block * config.block or most
    return [pairs[place] for place in order[:whole]]


def deleted(pairs: Sequence[Pair], seed: int) -> list[Inserted]:
    """Captions without one of their words each: the text-only baseline."""
    rng = np.random.default_rng((seed, 1))
    changed = []
    for pair in pairs:
        words = pair.text.split()
        if len(words) > 1:
            del words[int(rng.integers(len(words)))]
        changed.append(Inserted(text=" ".join(words)))
    return changed


def measure(
    system: System,
    samples: Sequence[Sample],
    pairs: Sequence[Pair],
    texts: Sequence[str],
    config: Config,
) -> dict[str, float]:
    """Mean reciprocal rank by blocks, under each tie rule."""
    from costream.evaluate.metrics.mean_reciprocal_rank import mean_reciprocal_rank
    from costream.evaluate.ranks import TieRule, rank_of_truth
    from costream.evaluate.systems import (
        SystemScores,
        encode_captions,
        encode_media,
        needs_tokens,
    )
    from costream.evaluate.truth import truth_from_groups

    rules: dict[str, TieRule] = {
        "mrr": "expected",
        "mrr_optimistic": "optimistic",
        "mrr_pessimistic": "pessimistic",
    }
    values: dict[str, list[float]] = {name: [] for name in rules}
    whole = needs_tokens(system)
    size = min(config.block, len(pairs))
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        shown = sorted({pair.picture for pair in some})
        scores = SystemScores(
            system,
            encode_captions(system.model, list(texts[start : start + size]), tokens=whole),
            encode_media(system.model, [samples[number] for number in shown], tokens=whole),
        )
        _, groups = np.unique([sample.group for sample in samples], return_inverse=True)
        own = np.array([groups[pair.picture] for pair in some], dtype=np.int64)
        truth = truth_from_groups(own, np.array([groups[n] for n in shown], dtype=np.int64))
        for name, rule in rules.items():
            ranks = rank_of_truth(scores, truth, tie_rule=rule)
            values[name].append(mean_reciprocal_rank(ranks))
    return {name: float(np.mean(each)) for name, each in values.items()}


def qualities(
    attacked: Attacked, samples: Sequence[Sample], pairs: Sequence[Pair], texts: Sequence[Inserted]
) -> dict[str, float]:
    """How near changed captions are to the original ones and to the pictures, and how true."""
    new = attacked.texts([one.text for one in texts])
    old = attacked.texts([pair.text for pair in pairs])
    pictures = attacked.pictures[[pair.picture for pair in pairs]]
    found = {
        "image_cosine": 100.0 * float((new * pictures).sum(axis=1).mean()),
        "text_cosine": 100.0 * float((new * old).sum(axis=1).mean()),
        "bleu": float(
            np.mean([bleu(one.text, pair.text) for one, pair in zip(texts, pairs, strict=True)])
        ),
        "changed": 100.0
        * float(np.mean([one.text != pair.text for one, pair in zip(texts, pairs, strict=True)])),
    }
    truths = [
        word in {attribute for number in slot.objects for attribute in seen[number].attributes}
        for one, pair in zip(texts, pairs, strict=True)
        if (seen := seen_in(samples[pair.picture])) is not None
        for _, word, slot in one.words
    ]
    return found | ({"true": 100.0 * float(np.mean(truths))} if truths else {})


def parts(config: Config, base: Base) -> Parts:
    """The evaluation."""
    return Parts(evaluation=(AttributeInsertions(config),))


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """What true, false and adversarial insertions do to small models of scenes."""
    from costream.methods._xmai.claim import reproduce

    return reproduce(options)
