"""Configurations: every value is of its declared type, and what is wrong is told at once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costream.config import (
    Range,
    check_config,
    describe_settings,
    from_dict,
    parse_settings,
    to_dict,
)
from costream.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    rate: Annotated[float, Range(0, 1, low_included=False)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: Annotated[float, Range(0)] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything:
    steps: Annotated[int, Range(1)]
    name: str = "run"
    warm: bool = True
    kind: Literal["forward", "reverse"] = "forward"
    level: Literal[1, 2, True] = 1
    ks: tuple[Annotated[int, Range(1)], ...] = (1, 5, 10)
    labels: tuple[str, ...] = ()
    limit: int | None = None
    optim: Optim = field(default_factory=Optim)
    second: Optim | None = None


OPTIMS = st.builds(
    Optim,
    rate=st.floats(0, 1, exclude_min=True),
    betas=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2),
    clip=st.none() | st.floats(0, 1e300),
)
EVERYTHING = st.builds(
    Everything,
    steps=st.integers(1),
    name=st.text(),
    warm=st.booleans(),
    kind=st.sampled_from(["forward", "reverse"]),
    level=st.sampled_from([1, 2, True]),
    ks=st.lists(st.integers(1)).map(tuple),
    labels=st.lists(st.text()).map(tuple),
    limit=st.none() | st.integers(),
    optim=OPTIMS,
    second=st.none() | OPTIMS,
)


@given(EVERYTHING)
def test_there_and_back_through_json_is_the_same_configuration(config: Everything) -> None:
    check_config(config)
    again = from_dict(Everything, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert type(again.level) is type(config.level)


@given(EVERYTHING)
def test_words_of_a_command_line_give_the_same_as_values(config: Everything) -> None:
    words = {
        "steps": str(config.steps),
        "name": config.name,
        "warm": str(config.warm),
        "kind": config.kind,
        "level": str(config.level).lower(),
        "ks": ",".join(map(str, config.ks)),
        "limit": str(config.limit),
        "optim.rate": repr(config.optim.rate),
        "optim.betas": ",".join(map(repr, config.optim.betas)),
        "optim.clip": repr(config.optim.clip),
    }
    made = parse_settings(Everything, words)
    assert made.optim == config.optim
    for name in ("steps", "name", "warm", "kind", "level", "ks", "limit"):
        assert getattr(made, name) == getattr(config, name)
        assert type(getattr(made, name)) is type(getattr(config, name))


@pytest.mark.parametrize("word", ["true", "True", "YES", "on", "1"])
def test_words_for_true(word: str) -> None:
    assert parse_settings(Everything, {"steps": "1", "warm": word}).warm is True


@pytest.mark.parametrize("word", ["false", "False", "No", "off", "0"])
def test_words_for_false_are_false(word: str) -> None:
    """`bool("False")` is True: the defect that this module exists to keep out."""
    assert parse_settings(Everything, {"steps": "1", "warm": word}).warm is False


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "1.5"),
        ("steps", "0"),
        ("steps", ""),
        ("steps", "none"),
        ("warm", "maybe"),
        ("warm", "2"),
        ("kind", "forwards"),
        ("level", "3"),
        ("ks", "1,,2"),
        ("ks", "224,"),
        ("ks", "0"),
        ("limit", "few"),
        ("optim.rate", "0"),
        ("optim.rate", "2"),
        ("optim.rate", "nan"),
        ("optim.rate", "inf"),
        ("optim.betas", "0.9"),
        ("optim.betas", "0.9,0.9,0.9"),
        ("optim.clip", "-1"),
        ("optim", "none"),
        ("second", "yes"),
    ],
)
def test_text_that_is_no_value_is_refused_and_names_the_option(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is .*expected"):
        parse_settings(Everything, {"steps": "1"} | {key: text})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("step", r"no option 'step' \(did you mean 'steps'\?\)"),
        ("optim.rat", r"'optim.rat' \(did you mean 'optim.rate'\?\)"),
        ("rate", "no option 'rate'"),
        ("zzz", "no option 'zzz';"),
        ("name.first", "no option 'name.first'"),
        ("", "no option ''"),
        (".", "no option"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(Everything, {"steps": "1"} | {key: "1"})


def test_all_problems_are_told_at_once() -> None:
    words = {"warm": "maybe", "optim.rate": "7", "stepz": "3"}
    with pytest.raises(ConfigError) as caught:
        parse_settings(Everything, words)
    text = str(caught.value)
    assert "4 problems" in text
    for part in ("warm is 'maybe'", "optim.rate is 7.0", "'stepz'", "steps has no value"):
        assert part in text


def test_an_optional_group_can_be_made_and_taken_away() -> None:
    made = parse_settings(Everything, {"steps": "1", "second.rate": "0.5"})
    assert made.second == Optim(rate=0.5)
    assert parse_settings(Everything, {"second": "none"}, base=made).second is None


@pytest.mark.parametrize("keys", [("optim", "optim.rate"), ("optim.rate", "optim")])
def test_a_group_is_not_set_as_a_whole_and_by_parts(keys: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        parse_settings(Everything, {"steps": "1"} | dict.fromkeys(keys, "0.5"))


def test_a_preset_is_the_base_of_what_is_not_named() -> None:
    base = Everything(steps=7, ks=(3,), optim=Optim(rate=0.25, clip=1.0))
    made = parse_settings(Everything, {"optim.clip": "none"}, base=base)
    assert made == Everything(steps=7, ks=(3,), optim=Optim(rate=0.25, clip=None))
    assert base.optim.clip == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": True}, "steps is True, expected a whole number at least 1"),
        ({"steps": 1.0}, "steps is 1.0"),
        ({"warm": 1}, "warm is 1, expected true or false"),
        ({"name": 3}, "name is 3, expected text"),
        ({"kind": "sideways"}, "expected one of forward, reverse"),
        ({"level": 1.0}, "level is 1.0"),
        ({"ks": [1, 2]}, "ks is"),
        ({"ks": (1, True)}, "is True"),
        ({"ks": 224}, "ks is 224"),
        ({"labels": "abc"}, "labels is 'abc'"),
        ({"limit": "3"}, "or none"),
        ({"optim": None}, "optim is None"),
        ({"optim": Optim(rate=math.nan)}, "optim.rate is nan"),
        ({"optim": Optim(betas=(0.9,))}, "optim.betas is"),  # type: ignore[arg-type]
        ({"second": 5}, "second is 5"),
    ],
)
def test_every_field_is_checked_at_run_time(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(Everything(**({"steps": 1} | changes)))


def test_a_whole_number_is_a_float_but_true_is_not() -> None:
    check_config(Optim(rate=1))
    made = from_dict(Optim, {"rate": 1})
    assert type(made.rate) is float
    for wrong in (True, "1", None, {}, [1]):
        with pytest.raises(ConfigError, match="rate"):
            from_dict(Optim, {"rate": wrong})


def test_from_dict_refuses_unknown_and_absent_options() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Everything, {"naem": "x", "optim": {"clpi": 3}})
    for part in ("'naem' (did you mean 'name'?)", "'optim.clpi' (did you", "steps has no value"):
        assert part in str(caught.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low is {self.low}, expected at most high, {self.high}")


def test_checks_of_the_class_itself_are_kept() -> None:
    with pytest.raises(ConfigError, match="low is 5, expected at most high, 1"):
        parse_settings(Ordered, {"low": "5"})


@dataclass
class Loose:
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    table: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Either:
    value: int | str = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    inner: Loose = field(default_factory=Loose)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Loose, "Loose lacks frozen, kw_only, slots"),
        (Around, "Loose lacks"),
        (int, "int is no dataclass"),
        (Odd, "table has type dict"),
        (Either, "value has type int | str"),
    ],
)
def test_classes_that_let_mistakes_pass_are_refused(kind: type[Any], message: str) -> None:
    for call in (
        lambda: parse_settings(kind, {}),
        lambda: from_dict(kind, {}),
        lambda: describe_settings(kind),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(ConfigError, match=message):
        check_config(kind())
    with pytest.raises(ConfigError, match=message):
        to_dict(kind())


def test_options_are_described_with_type_and_default() -> None:
    described = {each.key: each for each in describe_settings(Everything)}
    assert described["steps"].default is None
    assert described["steps"].type == "a whole number at least 1"
    assert described["optim.rate"].type == "a number above 0 and at most 1"
    assert described["ks"].default == "1,5,10"
    assert described["warm"].default == "true"
    assert described["limit"].default == "none"
    assert "second.clip" in described


def test_described_defaults_can_be_written_back() -> None:
    words = {
        each.key: each.default
        for each in describe_settings(Everything)
        if each.default is not None and not each.key.startswith("second")
    }
    assert parse_settings(Everything, words | {"steps": "1"}) == Everything(steps=1)


@given(st.floats(allow_nan=True), st.floats(-9, 9), st.booleans())
def test_range_is_what_it_says(value: float, low: float, included: bool) -> None:
    inside = value >= low if included else value > low
    assert Range(low, low_included=included).holds(value) == inside
    inside = value <= low if included else value < low
    assert Range(None, low, high_included=included).holds(value) == inside


def test_errors_are_of_the_library() -> None:
    assert not issubclass(ConfigError, DataError)
    assert not issubclass(ConfigError, ValueError)
