"""MaPLe: learned prompts in both towers of a frozen model, those of pictures made from the texts'.

Idea: a trained two-stream model is adapted to new classes with a few labelled pictures by learning
a few tokens a layer and nothing else. Tokens of the text tower are learned; those of the vision
tower are linear maps of them, so that what moves one tower moves the other.

Equations, with n prompts and J layers; T_i, V_i the tokens before layer i (from 0), P_i (n, d_t)
and the maps F_i: d_t -> d_v with bias, s the model's scale:

    text      T_0 = [start, P_0, words ..., end] + positions; T_i[1..n] := P_i      for 0 < i < J
    vision    V_0 = [class, patches] + positions, F_0(P_0);   V_i[-n..] := F_i(P_i) for 0 < i < J
    loss      CE(s v t^T) over the texts of all training classes

Shapes: B pictures, C classes, n prompts, d_t and d_v widths of the towers; what is learned has
J n d_t + J (d_t d_v + d_v) numbers.

Source: Khattak, Rasheed, Maaz, Khan, Khan, "MaPLe: Multi-modal Prompt Learning" (CVPR 2023), and
its code (muzairkhattak/multimodal-prompt-learning, MIT), both as the specification of this library
reports them; the code was not read again here.

Differs: any text tower gets room for its prompts by n tokens before every text, whose states the
prompts replace ("a photo", as in the released template "a photo of a <class>."), so that captions
are read, too. J is three quarters of the shallower tower by default (9 of 12). Tokens of prompts
leave the vision tower before pooling. A picture's class is its one text, or a named field of its
record. Base and novel classes are told apart by the hash of their names, not as halves in the
data's order, so that a class is of the same side in all data. AdamW of the training loop in place
of SGD; the scale is that of the settings, for a model here keeps none. `texts=captions` contrasts
the texts of a batch.

Traps: with one layer nothing is overwritten. At step 0 the adapted model is not the zero-shot one,
for F_0(P_0) is random: only prompts of the text alone begin there. Two prompts stand in a template
of four words on purpose.

Costs: n more tokens a picture; the texts of all classes pass the text tower every step.
Index impact: reencode, once: prompts of pictures do not depend on the question.

Claim: with 16 pictures a class, coupled prompts raise the harmonic mean of the accuracy on classes
learned and on classes never seen, over the model as it was and over prompts of one tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.preprocess import opening_tokens, tokenize
from costream.errors import ConfigError, NotFittedError
from costream.methods._maple.classes import (
    TEMPLATE,
    BaseToNovel,
    FewShots,
    base_and_novel,
    class_of,
    class_text,
)
from costream.objectives import Losses, Objective
from costream.objectives.contrast import contrast_rows
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.data import DataSet
    from costream.encoders.dual import DualEncoder
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "maple",
    "title": "MaPLe: Multi-modal Prompt Learning",
    "paper": "Khattak et al., CVPR 2023",
    "year": 2023,
    "kind": "few-shot adaptation by prompts",
    "slots": ("surgery", "objective", "data", "evaluation"),
    "index_impact": "reencode",
    "losses": ("classes",),
    "summary": "Learns prompts in several layers of the text tower and their linear images in the "
    "vision tower of a frozen model; measured on base and on novel classes.",
    "scale": "Published with CLIP ViT-B/16 and eleven data sets, three seeds each. The better a "
    "model knows classes that it never saw, the more training can make it forget, and the larger "
    "the effect.",
}

MOST_CLASSES = 1000

Which = Literal["coupled", "independent", "text", "vision"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of MaPLe; the defaults are those of the released code.

    Attributes:
        prompts: Tokens a layer.
        layers: Layers that get prompts, the first included; three quarters of the shallower tower
            when None.
        towers: Which prompts are learned: those of pictures `coupled` to those of texts, both
            `independent`, or of one tower.
        temperature: Divides the similarities.
        texts: `classes` learns to tell the classes of the training pictures apart; `captions`
            contrasts a picture's text with those of the batch.
        label: Field of a picture's record that names its class; its one text when empty.
        part: Whether `all` classes are trained on, or the `base` ones only.
        shots: Training pictures a class; all when 0.
    """

    prompts: Annotated[int, Range(1, len(TEMPLATE))] = 2
    layers: Annotated[int, Range(1)] | None = None
    towers: Which = "coupled"
    temperature: Annotated[float, Range(0, low_included=False)] = 0.05
    texts: Literal["classes", "captions"] = "classes"
    label: str = ""
    part: Literal["all", "base"] = "all"
    shots: Annotated[int, Range(0)] = 16


def _drawn(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width) * 0.02)


class TextPrompts(nn.Module):
    """Learned tokens of the text tower, in the places of a prefix.

    Args:
        start: float (n, d_t), embeddings of the prefix.
        layers: Layers with prompts.
        first: Place of the first one.
    """

    def __init__(self, start: Tensor, layers: int, first: int) -> None:
        super().__init__()
        count, width = start.shape
        self.first, self.stop = first, first + count
        self.start: Tensor
        self.register_buffer("start", start.clone())
        deep = (_drawn(count, width) for _ in range(layers - 1))
        self.prompts = nn.ParameterList([nn.Parameter(start.clone()), *deep])

    def enter(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) with the first prompts in place of the prefix; positions stay."""
        change = tokens.new_zeros(tokens.shape[1:])
        change[self.first : self.stop] = (self.prompts[0] - self.start).to(tokens.dtype)
        return tokens + change

    def before_layer(self, number: int, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) with those of the prompts overwritten in the first layers."""
        if not 0 < number < len(self.prompts):
            return tokens
        given = self.prompts[number].to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, : self.first], given, tokens[:, self.stop :]], dim=1)

    def leave(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) as they are: their number did not change."""
        return tokens


class VisionPrompts(nn.Module):
    """Tokens behind the patches: maps of the text's prompts, or learned on their own.

    Args:
        width: d_v.
        count: Prompts a layer.
        layers: Layers with prompts.
        source: The text's prompts to map; None for own ones.
    """

    def __init__(self, width: int, count: int, layers: int, source: TextPrompts | None) -> None:
        super().__init__()
        self.count, self.layers = count, layers
        # In a tuple it is no part of this module: its weights belong to the text tower.
        self._source = (source,)
        self.prompts = nn.ParameterList()
        self.maps = nn.ModuleList()
        if source is None:
            self.prompts.extend(_drawn(count, width) for _ in range(layers))
            return
        text_width = source.start.shape[1]
        self.maps.append(nn.Linear(text_width, width))
        deep = nn.Linear(text_width, width)
        for _ in range(layers - 1):
            self.maps.append(nn.Linear(text_width, width))
            self.maps[-1].load_state_dict(deep.state_dict())

    def of_layer(self, number: int) -> Tensor:
        """Prompts (n, d_v) of a layer."""
        (source,) = self._source
        if source is None:
            own: Tensor = self.prompts[number]
            return own
        mapped: Tensor = self.maps[number](source.prompts[number])
        return mapped

    def _behind(self, tokens: Tensor, number: int) -> Tensor:
        given = self.of_layer(number).to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens, given], dim=1)

    def enter(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) to (B, T + n, D)."""
        return self._behind(tokens, 0)

    def before_layer(self, number: int, tokens: Tensor) -> Tensor:
        """Tokens (B, T + n, D) with the last n overwritten in the first layers."""
        if not 0 < number < self.layers:
            return tokens
        return self._behind(tokens[:, : -self.count], number)

    def leave(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T + n, D) to (B, T, D)."""
        return tokens[:, : -self.count]


def prompted_layers(model: DualEncoder, config: Config) -> int:
    """How many layers get prompts.

    Raises:
        ConfigError: When a tower has fewer.
    """
    towers = model.config.vision.transformer, model.config.text.transformer
    least = min(tower.depth for tower in towers)
    layers = max(1, round(0.75 * least)) if config.layers is None else config.layers
    if layers > least:
        raise ConfigError(
            f"layers={layers}, but a tower of {model.name} has {least} layers",
            hint=f"at most {least}",
        )
    return layers


def put_prompts(model: DualEncoder, config: Config) -> DualEncoder:
    """Put prompts into the towers of a model, in place.

    Args:
        model: Any whose towers have no other method's prompts.
        config: Which and how many.

    Returns:
        The model.

    Raises:
        ConfigError: When a tower has a hook already, fewer layers, or no tokens for the template.
    """
    if model.text.hook is not None or model.vision.hook is not None:
        raise ConfigError(
            f"a tower of {model.name} is held by another method already",
            hint="leave one of the methods out, or start from another model",
        )
    layers = prompted_layers(model, config)
    prefix = prefix_of(model, config.prompts)
    text = None
    if config.towers != "vision":
        with torch.no_grad():
            start = model.text.embed(torch.tensor(prefix, device=model.device))
        text = TextPrompts(start, layers, opening_tokens(model.tokenizer))
        model.text.hook = text.to(model.device)
    if config.towers != "text":
        source = text if config.towers == "coupled" else None
        vision = VisionPrompts(model.vision.width, config.prompts, layers, source)
        model.vision.hook = vision.to(model.device)
    settings = replace(model.config.text_preprocess, prefix_ids=prefix)
    model.config = replace(model.config, text_preprocess=settings)
    return model


def prefix_of(model: DualEncoder, count: int) -> tuple[int, ...]:
    """Token ids that hold the places of the prompts: the template's first ones.

    Raises:
        ConfigError: When the model has fewer for it.
    """
    found = model.tokenizer.encode(" ".join(TEMPLATE), add_special_tokens=False).ids
    if len(found) < count:
        raise ConfigError(
            f"{model.name} reads {' '.join(TEMPLATE)!r} as {len(found)} tokens, expected at least "
            f"{count}",
            hint="use fewer prompts",
        )
    return tuple(found[:count])


def freeze(model: DualEncoder) -> DualEncoder:
    """Leave nothing of a model to train but its prompts."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(".hook." in name)
    return model


class MapleObjective(nn.Module, Objective):
    """Cross-entropy of pictures over the texts of classes, or of the batch.

    Args:
        temperature: Divides the similarities.
        classes: Picture id to class; None for the texts of the batch.
    """

    def __init__(self, temperature: float, classes: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.names = tuple(sorted(set((classes or {}).values())))
        numbers = {name: number for number, name in enumerate(self.names)}
        self.class_of = {id_: numbers[name] for id_, name in (classes or {}).items()}
        self._tokens: tuple[Tensor, Tensor] | None = None

    def init_state(self, model: DualEncoder) -> nn.Module:
        """Nothing is carried from step to step; the classes are put into the model's tokens."""
        texts = [class_text(name, model) for name in self.names]
        ids, mask = tokenize(model.tokenizer, texts, model.config.text_preprocess)
        on = model.device
        self._tokens = torch.from_numpy(ids).to(on), torch.from_numpy(mask).to(on)
        return nn.Module()

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """The loss of a batch.

        Args:
            model: Reads the texts of the classes.
            batch: Pictures; with their texts where there are no classes.
            features: The clean pass over them.
            state: Of `init_state`.

        Returns:
            The mean over pictures; `classes` for the log.

        Raises:
            NotFittedError: When `init_state` was not called.
        """
        image = features["image"].pooled
        if self.names:
            if self._tokens is None:
                raise NotFittedError("the classes have no tokens yet", hint="call init_state first")
            own = torch.tensor([self.class_of[id_] for id_ in batch.ids], device=image.device)
            texts = model.embed_tokens(*self._tokens)
            scores = self._scores(image, texts)
            rows = functional.cross_entropy(scores, own, reduction="none")
            value = mean_across(rows, batch.weight)
        else:
            value = self._over_batch(image, features["text"].pooled, batch)
        return Losses(total=value, parts={"classes": value.detach()})

    def _scores(self, image: Tensor, texts: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return image.float() @ texts.float().T / self.temperature

    def _over_batch(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        captions = len(text) // len(image)
        weight, groups = (each.repeat_interleave(captions) for each in (batch.weight, batch.groups))
        own = torch.arange(len(text), device=text.device) + rank() * len(text)
        related = groups[:, None] == gather_rows(groups)[None, :]
        scores = self._scores(
            image.repeat_interleave(captions, dim=0), gather_rows_with_gradient(text)
        )
        absent = (gather_rows(weight) <= 0)[None, :].expand_as(scores)
        absent = absent.scatter(1, own[:, None], value=False)
        rows = contrast_rows(scores.masked_fill(absent, float("-inf")), own, related, "remove")
        return mean_across(rows, weight)


def parts(config: Config, base: Base) -> Parts:
    """MaPLe for a model.

    Args:
        config: Settings.
        base: Where nothing is trained, only surgery and evaluation are given.

    Returns:
        Surgery and evaluation; for training the loss, and which pictures are used.

    Raises:
        DataError: When a picture has no class.
        ConfigError: When there are too many classes to read all of them every step.
    """
    evaluation = (BaseToNovel(label=config.label),)
    if base.training is None:
        return Parts(surgery=(lambda model: put_prompts(model, config),), evaluation=evaluation)

    def surgery(model: DualEncoder) -> DualEncoder:
        with torch.random.fork_rng():
            torch.manual_seed(base.seed)
            return freeze(put_prompts(model, config))

    chosen = None
    data: tuple[FewShots, ...] = ()
    if config.texts == "classes":
        chosen = _classes_of(config, base.training.data)
        used = tuple(sorted(set(chosen.values())))
        data = (FewShots(classes=used, label=config.label, shots=config.shots),)
    objective = MapleObjective(config.temperature, chosen)
    return Parts(
        surgery=(surgery,),
        objective=((1.0, objective),),
        reads=("image",) if chosen is not None else ("image", "text"),
        data=data,
        evaluation=evaluation,
    )


def _classes_of(config: Config, data: DataSet) -> dict[str, str]:
    """Class of each training picture, by its id."""
    found = {sample.id: class_of(sample, config.label) for sample in data.samples}
    base, novel = base_and_novel(list(found.values()))
    trained = set(base) if config.part == "base" else {*base, *novel}
    if len(trained) > MOST_CLASSES:
        raise ConfigError(
            f"{data.name} has {len(trained)} classes, expected at most {MOST_CLASSES}",
            hint="name the field with the class by label=, or learn from texts=captions",
        )
    return {id_: name for id_, name in found.items() if name in trained}


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """Prompts of both towers, coupled: against none, one tower's, and uncoupled ones.

    Args:
        options: With `rsicd` below its data root, aerial photographs; else procedural pictures.

    Returns:
        Tables with a verdict for every comparison.
    """
    from costream.methods._maple.claim import reproduce

    return reproduce(options)
