"""Training: any method's objectives on any captioned data.

The package can itself be called: `costream.train(...)` is `costream.train.train(...)`, whichever of
the two was imported first.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from costream.config import parse_settings, to_dict
from costream.errors import ConfigError
from costream.suggest import did_you_mean
from costream.train.config import TrainConfig

if TYPE_CHECKING:
    from costream.card import Card
    from costream.data import DataSet

__all__ = ["Preparing", "Progress", "TrainConfig", "split_settings", "train"]

_logger = logging.getLogger("costream.train")

Progress = Callable[[int, int, Mapping[str, float]], None]
Preparing = Callable[[str, int, int], None]


def train(
    method: str,
    data: str | Path | DataSet,
    out: str | Path,
    settings: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
    allow_missing: int = 0,
    progress: Progress | None = None,
    preparing: Preparing | None = None,
) -> Path:
    """Train a model with a method and save it.

    Under `torchrun`, all processes train one model together.

    Args:
        method: Name of a method (`costream methods`), or several with commas between, applied in
            this order.
        data: Captioned pictures: anything `read_data` takes, or a data set.
        out: Directory of the run; gets `model/`, `metrics.jsonl`, `curves.png`, `warnings.txt` when
            there are any, and checkpoints.
        settings: Option to text, of what to start from (`StartConfig`), of the loop (`TrainConfig`)
            or of a method's own `Config`; `name.option` where several methods have it.
        resume: Whether to go on from the newest intact checkpoint of `out`; from the start when
            there is none yet.
        allow_missing: Records that `read_data` may leave out; each is a warning.
        progress: Called each step with steps done, steps in all, and the losses.
        preparing: Called while a method gets ready (fits a visual tokenizer, say) with what it
            does, how much of that is done, and how much there is.

    Returns:
        The directory of the trained model.

    Raises:
        ConfigError: When the method or a setting is unknown or out of range, `out` is no folder
            that can be written, or it holds a run already and `resume` is not given.
        DataError: When the data has no captions or is broken.
        WeightsError: When there is no model to start from, or `resume` is given and the checkpoints
            are damaged or of a run with other settings or data.
        NumericalError: When a loss is not finite.

    Example:
        >>> import costream
        >>> from costream.data import make_scenes
        >>> settings = {"start": "random", "preset": "tiny", "steps": "2", "batch_size": "4"}
        >>> losses = {"mvm": "0", "mlm": "0", "queue_size": "8"}
        >>> costream.train("cots", make_scenes(8), "run", settings | losses).name
        'model'
    """
    from costream.card import find_together
    from costream.data import DataSet, printable, read_data
    from costream.encoders.storage import save_model
    from costream.method import Method, apply_methods, find_module
    from costream.objectives.gather import rank, wait_for_all
    from costream.parts import Training
    from costream.train.log import draw_curves, read_metrics
    from costream.train.loop import run, start_processes, stop_processes
    from costream.train.start import StartConfig, start_model

    cards = find_together(method)
    method = ",".join(card.name for card in cards)
    chosen = [find_module(card.name) for card in cards]
    start, loop, *own = split_settings(
        settings or {},
        (StartConfig, TrainConfig),
        {card.name: module.Config for card, module in chosen},
    )
    methods = [
        Method(card=card, module=module, config=config)
        for (card, module), config in zip(chosen, own, strict=True)
    ]
    if loop.steps and not any("objective" in card.slots for card in cards):
        raise _nothing_to_minimise(cards)
    out = Path(out)
    _check_directory(out, resume=resume)
    started_here = start_processes()
    try:
        samples = (
            data if isinstance(data, DataSet) else read_data(data, allow_missing=allow_missing)
        )
        model = start_model(start, seed=loop.seed)
        facts = {
            "method": method,
            "start": to_dict(start),
            "own": to_dict(own[0]) if len(own) == 1 else [to_dict(each) for each in own],
            "data": samples.hash,
        }
        out.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            _note_run(out / "run.json", {**facts, "loop": to_dict(loop)}, resume=resume)
            for failure in samples.missing:
                _logger.warning("record left out: %s: %s", printable(failure.path), failure.reason)
        training = Training(data=samples, directory=out, progress=preparing)
        system = apply_methods(model, methods, seed=loop.seed, training=training)
        model, parts = system.model, system.parts
        if not parts.objective and loop.steps:
            raise _nothing_to_minimise(cards)
        rng = np.random.default_rng(loop.seed)
        for pipe in parts.data:
            samples = DataSet(name=samples.name, samples=tuple(pipe(samples.samples, rng)))
        if loop.steps:
            run(
                model,
                parts.objective,
                samples,
                loop,
                out,
                reads=parts.reads,
                facts=facts,
                resume=resume,
                progress=progress,
            )
        if rank() == 0:
            save_model(model, out / "model", card=_card(method, samples, facts))
        if rank() == 0 and loop.steps:
            try:
                draw_curves(read_metrics(out / "metrics.jsonl"), out / "curves.png")
            except ImportError:
                (out / "curves.txt").write_text("pip install 'costream[train]' draws curves.png\n")
        wait_for_all()
    finally:
        if started_here:
            stop_processes()
    return out / "model"


def _nothing_to_minimise(cards: Sequence[Card]) -> ConfigError:
    """What to say of methods that bring no objective, with what they are for."""
    from costream.card import find_methods

    names = ",".join(card.name for card in cards)
    training = [card.name for card in find_methods().values() if "objective" in card.slots]
    ways = {"rank": "costream search --rank", "evaluation": "costream evaluate --protocol"}
    uses = [
        f"{way} '{card.name} KEY=VALUE ...' uses it"
        for card in cards
        for slot, way in ways.items()
        if slot in card.slots and "objective" not in card.slots
    ]
    return ConfigError(
        f"{names} has nothing to minimise, expected a method with an objective",
        hint="; ".join([*uses, f"those that train are {', '.join(training)}"])
        + "; steps=0 saves a model that keeps it as it is",
    )


def _check_directory(out: Path, *, resume: bool) -> None:
    """Refuse what cannot take a run, before the data is read."""
    nearest = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file, expected a folder", hint="choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{nearest} may not be written", hint="choose another --out")
    # Without steps there are no checkpoints, but a model.
    if not resume and any((out / made).exists() for made in ("checkpoints", "model")):
        raise ConfigError(
            f"{out} holds a run already", hint="add --resume, or choose another --out"
        )


def _note_run(path: Path, facts: Mapping[str, Any], *, resume: bool) -> None:
    """Write what the run is made of, unless it goes on: then the checkpoint is the judge."""
    if resume and path.exists():
        return
    path.write_text(json.dumps(facts, indent=1) + "\n")


def split_settings(
    settings: Mapping[str, str], common: Sequence[type[Any]], methods: Mapping[str, type[Any]]
) -> tuple[Any, ...]:
    """Give each setting to the configuration that has a field of its name.

    Args:
        settings: Option to text; `method.option` where several methods have the option.
        common: Configuration classes of training itself.
        methods: Method to its configuration class.

    Returns:
        One configuration a class.

    Raises:
        ConfigError: When a name is of no configuration, or of several methods, or a value does not
            fit; or a method has an option that training has, which would leave one out of reach.
    """
    kinds = [*common, *methods.values()]
    owners: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        for field in fields(kind):
            owners.setdefault(field.name, []).append(number)
    called = [*(kind.__name__ for kind in common), *methods]
    for option, having in owners.items():
        if len(having) > 1 and having[0] < len(common):
            raise ConfigError(
                f"option {option!r} is of {called[having[0]]} and of the Config of "
                f"{called[having[1]]}",
                hint="rename it in the method",
            )
    given: list[dict[str, str]] = [{} for _ in kinds]
    for key, text in settings.items():
        first, _, rest = key.partition(".")
        if rest and first in methods:
            given[len(common) + list(methods).index(first)][rest] = text
            continue
        having = owners.get(first, [])
        if not having:
            raise ConfigError(
                f"training with {','.join(methods)} has no option {key!r}"
                f"{did_you_mean(first, owners)}",
                hint=f"its options are {', '.join(sorted(owners))}",
            )
        if len(having) > 1:
            raise ConfigError(
                f"option {first!r} is of {' and '.join(called[n] for n in having)}, expected one",
                hint=f"write {called[having[0]]}.{key}={text}",
            )
        given[having[0]][key] = text
    return tuple(parse_settings(kind, some) for kind, some in zip(kinds, given, strict=True))


def _card(method: str, data: DataSet, facts: Mapping[str, Any]) -> str:
    return (
        f"# A model trained with {method}\n\n"
        f"- data: {data.name}, {data.num_images} pictures, {data.num_captions} captions\n"
        f"- data hash: {data.hash}\n"
        f"- started from: {facts['start']['start']}\n"
        f"- processes: {os.environ.get('WORLD_SIZE', '1')}\n"
    )


class _CallablePackage(ModuleType):
    """Lets `costream.train` be the function that users call and the package that holds it.

    Python binds the name to the package as soon as any module of it is imported, so without this
    `costream.train(...)` would work or not depending on what was imported before.
    """

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _CallablePackage
