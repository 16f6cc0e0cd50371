"""The efficiency half of the claim: two streams against one, in seconds and in hits.

The single-stream peer reads the tokens of the two-stream model and is trained on the same pictures,
so that what is timed is a real ranker and not a random one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costream.encoders.cross import CrossEncoder, cross_encoder_beside, score_matrix
from costream.encoders.cross_training import PairTokens, train_cross_encoder
from costream.encoders.dual import DualEncoder
from costream.evaluate import ClaimTable, GivenScores, Truth, compare_seeds, rank_of_truth
from costream.evaluate.efficiency import (
    RankingCurve,
    efficiency_from_json,
    efficiency_to_json,
    measure_ranking_time,
)
from costream.methods._cots.all_runs import Experiment, full_run
from costream.methods._cots.world import Say, Scale, World
from costream.train.short import CachedPairs, encode_cached, first_captions

_QUERY = "a dog runs along a beach with a ball in its mouth"
_BATCH = 32
_REPEATED = 3
_FACTORS = (100, 1000, 10_000)
_LOST = 5.0


def pair_tokens(model: DualEncoder, pairs: CachedPairs) -> PairTokens:
    """The tokens that the peer reads, of every picture and its first caption."""
    pairs = first_captions(pairs, len(pairs.names))
    images, texts = encode_cached(model, pairs)
    rows = torch.split(torch.arange(len(pairs.names)), 256)
    with torch.no_grad():
        tokens = torch.cat([_image_tokens(model, pairs, chunk) for chunk in rows])
        embedded = model.text.embed(pairs.ids)
    return PairTokens(
        images=tokens,
        texts=embedded,
        mask=pairs.mask,
        image_of_text=torch.arange(len(pairs.names)),
        image_vectors=images.clone(),
        text_vectors=texts.clone(),
    )


def _image_tokens(model: DualEncoder, pairs: CachedPairs, rows: Tensor) -> Tensor:
    if pairs.frozen is None:
        return model.vision.patches(model.normalise_pixels(pairs.pixels[rows]))
    stem_map = model.vision.trained_part(pairs.frozen[rows].float())
    return model.vision.patches_of_map(stem_map)


def train_peer(model: DualEncoder, train: CachedPairs, scale: Scale, say: Say) -> CrossEncoder:
    """A single-stream model beside `model`, trained for a short while."""
    torch.manual_seed(0)
    cross = cross_encoder_beside(model)
    tokens = pair_tokens(model, train)
    begin = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        done = step + 1
        if done * 4 // scale.cross_steps > step * 4 // scale.cross_steps:
            seconds = time.monotonic() - begin
            say(f"  {done} of {scale.cross_steps} steps, loss {loss:.2f}, {seconds:.0f} s")

    train_cross_encoder(
        cross, tokens, steps=scale.cross_steps, batch_size=_BATCH, negatives=3, on_step=on_step
    )
    return cross


def hits(scores_NM: NDArray[np.float32]) -> list[float]:
    """100 for each of 2 N queries that finds its partner first, else 0; ties count their chance.

    Args:
        scores_NM: Pictures by texts, partners on the diagonal, N = M.

    Example:
        >>> hits(np.array([[0.9, 0.1], [0.8, 0.2]], dtype=np.float32))
        [100.0, 0.0, 100.0, 100.0]
    """
    count = len(scores_NM)
    truth = Truth(relevant=[np.array([row]) for row in range(count)], num_items=count)
    found: list[float] = []
    for scores in (scores_NM, scores_NM.T):
        ranks = rank_of_truth(GivenScores(np.ascontiguousarray(scores)), truth)
        found += (100.0 * ranks.first_within(1)).tolist()
    return found


def quality(model: DualEncoder, cross: CrossEncoder, dev: CachedPairs) -> dict[str, list[float]]:
    """Hits of both kinds of model on the same pictures and captions, query by query."""
    images, texts = encode_cached(model, dev)
    tokens = pair_tokens(model, dev)
    joint = score_matrix(cross, tokens.images, tokens.texts, tokens.mask)
    return {"two": hits((images @ texts.T).numpy()), "one": hits(joint.numpy())}


def measure_speed(experiment: Experiment) -> Mapping[str, Any]:
    """Times, their cost model and hits; from the log when they were measured before."""
    scale, world, say = experiment.scale, experiment.world, experiment.say
    settings = experiment.settings(
        speed={
            "counts": scale.counts,
            "longest_s": scale.longest_s,
            "cross_steps": scale.cross_steps,
            "cross_pictures": scale.cross_pictures,
            "run": asdict(full_run(scale)),
            "threads": torch.get_num_threads(),
        }
    )
    found = experiment.log.get(settings)
    if found is None:
        say("training the single-stream model")
        model = experiment.model(full_run(scale))
        values = _measure(model, world, scale, say)
        experiment.log.add(settings, values)
        found = values
    return found


def _measure(model: DualEncoder, world: World, scale: Scale, say: Say) -> dict[str, Any]:
    cross = train_peer(model, world.train, scale, say)
    found = quality(model, cross, first_captions(world.dev, scale.cross_pictures))
    say("timing both kinds of model")
    curve = measure_ranking_time(
        model, cross, world.pool, _QUERY, counts=scale.counts, longest_s=scale.longest_s
    )
    small = [count for count in scale.counts if count <= 1000]
    again = [
        measure_ranking_time(model, cross, world.pool, _QUERY, counts=small)
        for _ in range(_REPEATED - 1)
    ]
    return {
        "curve": efficiency_to_json(curve),
        "again": [efficiency_to_json(each) for each in again],
        "hits": found,
    }


def curve_of(values: Mapping[str, Any]) -> RankingCurve:
    """The curve among the values."""
    return efficiency_from_json(values["curve"])


def _seconds(curve: RankingCurve, scorer: str, count: int) -> float:
    return next(
        row.seconds
        for row in curve.times
        if (row.scorer, row.gallery, row.count) == (scorer, "ready", count)
    )


def speed_table(values: Mapping[str, Any], scale: Scale) -> ClaimTable:
    """Are two streams faster, the more the larger the gallery, and about as good?"""
    curves = [efficiency_from_json(each) for each in (values["curve"], *values["again"])]
    small = [count for count in sorted(scale.counts) if count <= 1000]

    def seconds(scorer: str, count: int) -> list[float]:
        return [1000 * _seconds(curve, scorer, count) for curve in curves]

    def factors(count: int) -> list[float]:
        pairs = zip(seconds("one stream", count), seconds("two streams", count), strict=True)
        return [one / two for one, two in pairs]

    rows = [
        compare_seeds(
            f"time to rank {count:,} pictures, two streams over one",
            seconds("two streams", count),
            seconds("one stream", count),
            more_is_better=False,
            unit="ms",
        )
        for count in small
    ]
    if len(small) > 1:
        name = f"factor at {small[-1]:,} pictures over factor at {small[0]:,}"
        rows.append(compare_seeds(name, factors(small[-1]), factors(small[0]), unit="x"))
    two, one = values["hits"]["two"], values["hits"]["one"]
    rows.append(
        compare_seeds(
            f"hit@1 of {len(two) // 2:,} pictures, two streams over one, loses at most {_LOST:g}",
            two,
            one,
            threshold=-_LOST,
            interval="bootstrap",
            unit="%",
        )
    )
    return ClaimTable(
        title="Two streams rank faster than one, the more so the more pictures, and no worse",
        rows=tuple(rows),
        settings=_speed_settings(curves[0], scale),
    )


def _speed_settings(curve: RankingCurve, scale: Scale) -> dict[str, str]:
    cost = curve.cost
    numbers = []
    for factor in _FACTORS:
        count = cost.count_for_factor(factor)
        numbers.append(f"{factor:,} x at " + ("no number" if count is None else f"{count:,}"))
    largest = max(scale.counts)
    return {
        "measured": "best of 3 for one query, with everything ready that can be; 3 measurements",
        "cost of a text, a dot product, a joint pass, a picture": (
            f"{1e3 * cost.text_s:.2f} ms, {1e9 * cost.dot_s:.1f} ns, {1e3 * cost.joint_s:.2f} ms, "
            f"{1e3 * cost.image_s:.2f} ms (largest error of the fit {100 * cost.worst_error:.0f} %)"
        ),
        f"factor at {largest:,} pictures": f"{cost.factor(largest):,.0f} by the cost model",
        "pictures from which on two streams are faster by": "; ".join(numbers),
        "single-stream model": f"trained for {scale.cross_steps} steps of {_BATCH} pairs; a peer "
        "that is trained for longer ranks better, not faster",
        "device": f"{curve.device}, {curve.threads} threads",
    }
