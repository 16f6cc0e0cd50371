"""The public names are frozen: adding or removing one is a decision, made here."""

from __future__ import annotations

import costream

# The whole public API. To change it, change this list and the changelog.
PUBLIC = [
    "Batch",
    "ConfigError",
    "CostreamError",
    "DataError",
    "DataSet",
    "DualEncoder",
    "Features",
    "Index",
    "Item",
    "Like",
    "NotFittedError",
    "NumericalError",
    "Picture",
    "Qrels",
    "Query",
    "Ranking",
    "Report",
    "Sample",
    "Searcher",
    "Space",
    "SpaceMismatch",
    "WeightsError",
    "Words",
    "evaluate",
    "evaluate_vectors",
    "load",
    "open_image",
    "rank_of_truth",
    "read_data",
    "save_model",
    "train",
    "update_index",
]


def test_public_names_are_the_frozen_list() -> None:
    assert sorted(costream.__all__) == sorted(PUBLIC)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in PUBLIC:
        assert getattr(costream, name).__doc__, name


def test_dir_lists_the_public_names() -> None:
    assert set(PUBLIC) <= set(dir(costream))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    assert not hasattr(costream, "no_such_name")
