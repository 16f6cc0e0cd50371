"""Hits in each language, and how much the rank of the right item depends on the language.

Shape letters: N pictures, K languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from costream.data import DataSet
from costream.errors import DataError
from costream.evaluate.metrics import hit_at_k
from costream.evaluate.ranks import Scores, rank_of_truth
from costream.evaluate.retrieval import describe_data
from costream.evaluate.systems import (
    SystemScores,
    describe_system,
    encode_captions,
    encode_media,
    needs_tokens,
)
from costream.evaluate.truth import truth_from_groups
from costream.methods.one_to_k import mean_rank_deviation, mean_rank_variance
from costream.parts import System
from costream.records import Report

WAYS = ("image_to_text", "text_to_image")
DEFINITIONS = {
    "hit@1": "share of queries whose right item is first, in percent, mean over languages",
    "hit@1 worst": "the same in the language where it is lowest",
    "hit@1 best": "the same in the language where it is highest",
    "mean rank variance": "mean over pictures of the variance, over languages, of the rank of the "
    "right item (its best caption, for pictures as queries); 0 where all languages agree",
    "mean rank deviation": "the same with the standard deviation",
}


def measure_consistency(system: System, data: DataSet, languages: Sequence[str]) -> Report:
    """Rank every picture in every language, each language against its own captions.

    A picture with several captions in a language asks with each; its rank is their mean.

    Args:
        system: What to measure.
        data: Samples that lack a language are left out.
        languages: Slots of captions.

    Returns:
        For both directions hits and mean rank variance; beside them hits by language.

    Raises:
        DataError: When no sample has captions in all languages.
    """
    samples = tuple(s for s in data.samples if all(s.slots.get(slot) for slot in languages))
    if not samples:
        raise DataError(
            f"no sample of {data.name} has captions in all of {', '.join(languages)}",
            hint="--protocol 'one_to_k languages=text,text.de', or what the data has",
        )
    whole = needs_tokens(system)
    seen = encode_media(system.model, samples, tokens=whole)
    groups = [sample.group for sample in samples]
    ranks: dict[str, list[NDArray[np.float64]]] = {way: [] for way in WAYS}
    hits: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for slot in languages:
        texts = [text for sample in samples for text in sample.slots[slot]]
        owner = np.repeat(np.arange(len(samples)), [len(s.slots[slot]) for s in samples])
        read = encode_captions(system.model, texts, tokens=whole)
        of_text = [groups[number] for number in owner]
        scores: Mapping[str, Scores] = {
            "image_to_text": SystemScores(system, seen, read),
            "text_to_image": SystemScores(system, read, seen),
        }
        found = {
            "image_to_text": rank_of_truth(
                scores["image_to_text"], truth_from_groups(groups, of_text)
            ),
            "text_to_image": rank_of_truth(
                scores["text_to_image"], truth_from_groups(of_text, groups)
            ),
        }
        for way in WAYS:
            hits[way][slot] = hit_at_k(found[way], 1)
        ranks["image_to_text"].append(found["image_to_text"].first_rank())
        asked = found["text_to_image"].first_rank()
        ranks["text_to_image"].append(np.bincount(owner, asked) / np.bincount(owner))
    metrics = {way: summary(np.stack(ranks[way], axis=1), hits[way]) for way in WAYS}
    kept = DataSet(name=data.name, samples=samples)
    by_language = {f"{way} hit@1 by language": hits[way] for way in WAYS}
    return Report(
        metrics=metrics,
        definitions=DEFINITIONS,
        data=describe_data(kept, ()) | by_language | {"left_out": len(data) - len(samples)},
        model=describe_system(system),
    )


def summary(ranks_NK: NDArray[np.float64], hits: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one direction."""
    return {
        "hit@1": float(np.mean(list(hits.values()))),
        "hit@1 worst": min(hits.values()),
        "hit@1 best": max(hits.values()),
        "mean rank variance": mean_rank_variance(ranks_NK),
        "mean rank deviation": mean_rank_deviation(ranks_NK),
    }
