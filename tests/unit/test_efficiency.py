"""The efficiency claim: the cost model finds known costs, and real models are timed honestly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from costream.encoders.blocks import TransformerConfig
from costream.encoders.cross import cross_encoder_beside
from costream.encoders.dual import DualConfig, DualEncoder
from costream.encoders.preprocess import ImagePreprocess, TextPreprocess
from costream.encoders.text import TextConfig
from costream.encoders.vision import VisionConfig
from costream.errors import ConfigError, DataError
from costream.evaluate.efficiency import (
    CostModel,
    RankingCurve,
    RankingTime,
    efficiency_from_json,
    efficiency_table,
    efficiency_to_json,
    fit_cost_model,
    measure_ranking_time,
    plot_efficiency,
)

TRUE = CostModel(text_s=8e-3, dot_s=2e-7, image_s=0.04, joint_s=0.006, tokens_s=0.03)
KINDS = [(s, g) for s in ("two streams", "one stream") for g in ("ready", "from pixels")]


def made_times(cost: CostModel = TRUE, wobble: float = 0.0) -> list[RankingTime]:
    return [
        RankingTime(
            scorer=scorer,
            gallery=gallery,
            count=count,
            seconds=cost.seconds(scorer, gallery, count) * (1 + wobble * (-1) ** number),
            measured=True,
        )
        for scorer, gallery in KINDS
        for number, count in enumerate((100, 1000, 10_000))
    ]


def small_models() -> tuple[DualEncoder, torch.Tensor]:
    torch.manual_seed(0)
    layers = TransformerConfig(width=16, depth=1, heads=2, mlp_width=32)
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "red": 1, "disc": 2}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = DualConfig(
        name="small",
        dim=8,
        vision=VisionConfig(image_px=16, patch_px=8, transformer=layers),
        text=TextConfig(vocab_size=3, context=4, transformer=layers),
        image_preprocess=ImagePreprocess(size_px=16),
        text_preprocess=TextPreprocess(max_tokens=4),
    )
    pixels = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    return DualEncoder(config, tokenizer).train(), pixels


def test_exact_times_give_back_their_costs() -> None:
    fitted = fit_cost_model(made_times())
    for name in ("text_s", "dot_s", "image_s", "joint_s", "tokens_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert fitted.worst_error < 1e-9


def test_worst_error_tells_a_bad_fit() -> None:
    assert fit_cost_model(made_times(wobble=0.2)).worst_error == pytest.approx(0.2, abs=0.15)


def test_costs_are_never_negative() -> None:
    """Falling times would ask for a negative cost a picture."""
    times = [
        RankingTime(
            scorer=row.scorer,
            gallery=row.gallery,
            count=row.count,
            seconds=1.0 / row.count,
            measured=True,
        )
        for row in made_times()
    ]
    cost = fit_cost_model(times)
    assert min(cost.text_s, cost.dot_s, cost.image_s, cost.joint_s, cost.tokens_s) >= 0.0


def test_factor_grows_with_n_to_its_limit() -> None:
    factors = [TRUE.factor(count) for count in (1, 100, 10_000, 10**9)]
    assert factors == sorted(factors) and factors[-1] < TRUE.joint_s / TRUE.dot_s
    assert factors[0] == pytest.approx(0.006 / (8e-3 + 2e-7))


def test_count_for_factor_is_the_first_that_reaches_it() -> None:
    count = TRUE.count_for_factor(1000.0)
    assert count is not None
    assert TRUE.factor(count) >= 1000.0 > TRUE.factor(count - 1)
    assert TRUE.count_for_factor(TRUE.joint_s / TRUE.dot_s) is None


def test_times_that_are_absent_or_impossible_are_refused() -> None:
    with pytest.raises(DataError, match="got 0 times of one stream"):
        fit_cost_model([row for row in made_times() if row.scorer == "two streams"])
    nothing = RankingTime(scorer="one stream", gallery="ready", count=1, seconds=0.0, measured=True)
    with pytest.raises(DataError, match="above 0"):
        fit_cost_model([*made_times(), nothing])


def test_real_models_are_timed_and_left_as_they_were(tmp_path: Path) -> None:
    model, pixels = small_models()
    cross = cross_encoder_beside(model)
    curve = measure_ranking_time(model, cross, pixels, "red disc", counts=(40, 4), repeats=2)
    assert [(row.scorer, row.gallery) for row in curve.times[::2]] == KINDS
    assert [row.count for row in curve.times[:2]] == [4, 40]
    assert all(row.measured and row.seconds > 0 for row in curve.times)
    assert model.training and cross.training
    assert efficiency_from_json(json.loads(json.dumps(efficiency_to_json(curve)))) == curve
    plot_efficiency(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_run_says_so() -> None:
    model, pixels = small_models()
    curve = measure_ranking_time(
        model, cross_encoder_beside(model), pixels, "red", counts=(2, 1000), longest_s=0.0
    )
    assert [row.measured for row in curve.times] == [True, False] * 4
    for row in curve.times[1::2]:
        assert row.seconds == curve.cost.seconds(row.scorer, row.gallery, 1000)
    heading, first, last = efficiency_table(curve)
    assert len(heading) == len(first) == len(last) == 6
    assert "~" not in "".join(first) and all(cell.startswith("~") for cell in last[1:])


def test_impossible_wishes_are_refused() -> None:
    model, pixels = small_models()
    cross = cross_encoder_beside(model)
    with pytest.raises(ConfigError, match="counts"):
        measure_ranking_time(model, cross, pixels, "red", counts=())
    with pytest.raises(ConfigError, match="counts"):
        measure_ranking_time(model, cross, pixels, "red", counts=(0, 5))
    with pytest.raises(DataError, match="no pictures"):
        measure_ranking_time(model, cross, pixels[:0], "red")
    with pytest.raises(DataError, match="no stored ranking curve"):
        efficiency_from_json({"times": []})


def test_a_stored_curve_keeps_everything() -> None:
    curve = RankingCurve(
        times=tuple(made_times()), cost=TRUE, device="cpu", threads=2, two_stream="x"
    )
    assert efficiency_from_json(efficiency_to_json(curve)) == curve
