"""Evaluation: one ranking function, metrics that say what they mean, reports that can be believed.

Nothing here imports torch. The package can itself be called: `costream.evaluate(model, data)` is
`costream.evaluate.evaluate(model, data)`, whichever of the two was imported first.
"""

import sys
from types import ModuleType

from costream.evaluate.claims import (
    ClaimOptions,
    ClaimRow,
    ClaimTable,
    bootstrap_interval,
    claim_from_json,
    claim_to_json,
    compare_seeds,
    render_claim,
    t_interval,
)
from costream.evaluate.metrics import hit_at_k, mean_reciprocal_rank, median_rank, recall_at_k
from costream.evaluate.ranks import Ranks, TieRule, rank_of_truth, ranks_by_chance
from costream.evaluate.report import report_from_json, report_table, report_to_json
from costream.evaluate.retrieval import RetrievalModel, evaluate
from costream.evaluate.scores import DotScores, GivenScores
from costream.evaluate.truth import Truth, truth_from_groups, truth_from_qrels
from costream.evaluate.vectors import Names, chance_of_vectors, evaluate_vectors

__all__ = [
    "ClaimOptions",
    "ClaimRow",
    "ClaimTable",
    "DotScores",
    "GivenScores",
    "Names",
    "Ranks",
    "RetrievalModel",
    "TieRule",
    "Truth",
    "bootstrap_interval",
    "chance_of_vectors",
    "claim_from_json",
    "claim_to_json",
    "compare_seeds",
    "evaluate",
    "evaluate_vectors",
    "hit_at_k",
    "mean_reciprocal_rank",
    "median_rank",
    "rank_of_truth",
    "ranks_by_chance",
    "recall_at_k",
    "render_claim",
    "report_from_json",
    "report_table",
    "report_to_json",
    "t_interval",
    "truth_from_groups",
    "truth_from_qrels",
]


class _CallablePackage(ModuleType):
    """Lets `costream.evaluate` be the function that users call and the package that holds it.

    Python binds the name to the package as soon as any module of it is imported, so without this
    `costream.evaluate(...)` would work or not depending on what was imported before.
    """

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
