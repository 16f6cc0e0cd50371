"""Metrics of a ranking, one file each: the sentence that defines it and the function."""

from costream.evaluate.metrics.hit_at_k import define_hit_at_k, hit_at_k
from costream.evaluate.metrics.mean_reciprocal_rank import (
    define_mean_reciprocal_rank,
    mean_reciprocal_rank,
)
from costream.evaluate.metrics.median_rank import define_median_rank, median_rank
from costream.evaluate.metrics.recall_at_k import define_recall_at_k, recall_at_k

__all__ = [
    "define_hit_at_k",
    "define_mean_reciprocal_rank",
    "define_median_rank",
    "define_recall_at_k",
    "hit_at_k",
    "mean_reciprocal_rank",
    "median_rank",
    "recall_at_k",
]
