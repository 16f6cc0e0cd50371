"""XBT: a new model that asks the index of an old one, without the gallery being embedded again.

Idea: an index of millions of pictures outlives the model that made it. A small map phi from the new
model's vectors to the old one's is learned from texts alone, with noise, for it will be applied to
pictures, which lie where no text lies. Then adapters of low rank in both new towers learn, from few
pictures, to look right through phi. The gallery never changes.

Equations, with unit vectors a = f_new(t), b = f_old(t) of a text t, and n() for unit length:

    stage 1   a~ = n(a + sigma eps), eps ~ N(0, I/d);   L1 = NCE(phi(a~), b) + c (1 - cos(phi(a~), b))
    stage 2   b^ = phi(f_new(t)), without adapters, no gradient; phi and the towers are frozen
              L2 = NCE(phi(f'(x)), b^) + NCE(phi(f'(x)), phi(f'(t)))     for pairs of picture x, text t
    serving   phi(f'(query)) against the old gallery
    NCE       contrast in both directions over the batch

    closed form   phi(a) = n(a R), R = P Q^T from the singular values of V^T U = P S Q^T (Procrustes)
    flips         PFR = P(old wrong, new right), NFR = P(old right, new wrong), gain = PFR - NFR
    compatible    new queries beat old queries on the old gallery, strictly, in both directions

Shapes: N texts, B pairs of a batch, I dimensions of the new model, O of the old one.

Source: "Towards Cross-modal Backward-compatible Representation Learning for Vision-Language Models"
(ICCV 2025), by the specification of this library: the stages, their order and the criterion are the
abstract's and a third party's; form of phi, both losses, noise, temperature, and rank and place of
the adapters are reconstructions, for no code was found. Procrustes and the great circle between old
and mapped query (`slerp`) are of the follow-up that names miccunifi/SLERP_backward_compatibility.

Differs: no soft prompts. Adapters sit in the attention of every layer of both towers. Texts that are
alike count once in stage 1.

A saved model says in whose space it asks (`DualConfig.query_space`), and indexes of the old model
take its queries. It embeds no items, although phi maps pictures too: the paper promises queries only,
and an index of mixed vectors would rank new items by their modality gap. `costream index` with it is
refused and names the old model. `without_adapter` gives back the new model to the last bit.
`steps=0 rank=0` is stage 1 alone.

Costs: both text towers read every caption once; a step of stage 2 reads the texts twice. A query
passes phi besides: some 10^5 multiplications. Index impact: query_only.

Claim: the new model's queries beat the old one's on the old one's gallery in both directions, and
the closed form's.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.encoders.blocks import Encoded, Transformer
from costream.encoders.dual import DualEncoder, Head
from costream.errors import ConfigError, DataError
from costream.methods._xbt.maps import FitConfig, Projection, empty_map, fit_map
from costream.methods._xbt.upgrade import UpgradeEvaluation
from costream.objectives import Losses
from costream.objectives.contrast import contrast_rows
from costream.objectives.gather import gather_rows, gather_rows_with_gradient, mean_across, rank
from costream.parts import Base, Parts, Training
from costream.records import Batch, Features, Space

if TYPE_CHECKING:
    from costream.evaluate import ClaimOptions, ClaimTable

CARD = {
    "name": "xbt",
    "title": "XBT: cross-modal backward-compatible queries",
    "paper": "Towards Cross-modal Backward-compatible Representation Learning for "
    "Vision-Language Models, ICCV",
    "year": 2025,
    "kind": "adapter",
    "slots": ("surgery", "objective", "evaluation"),
    "index_impact": "query_only",
    "losses": ("target", "pair"),
    "summary": "Lets a new model ask the index of an old one: a map between their spaces learned "
    "from texts, and adapters that look through it.",
}

_MAP = "old_space_map"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings.

    Attributes:
        old: Name or directory of the model that made the index.
        projection: `mlp` for phi, `procrustes` for the closed form.
        hidden: Width of the inner layers of phi.
        layers: Of weights in phi.
        noise: Expected length of the noise added to a unit vector in stage 1.
        cosine: Weight of 1 - cos beside the contrast in stage 1.
        map_steps: Steps of stage 1.
        map_batch: Texts a step of stage 1.
        map_rate: Peak learning rate of stage 1.
        rank: Of the adapters of stage 2; 0 for none, with steps=0.
        adapter_scale: What their product is multiplied by.
        temperature: Divides the similarities of both stages.
    """

    old: str = ""
    projection: Projection = "mlp"
    hidden: Annotated[int, Range(1)] = 512
    layers: Annotated[int, Range(2, 3)] = 3
    noise: Annotated[float, Range(0)] = 0.5
    cosine: Annotated[float, Range(0)] = 1.0
    map_steps: Annotated[int, Range(1)] = 2000
    map_batch: Annotated[int, Range(2)] = 256
    map_rate: Annotated[float, Range(0, low_included=False)] = 1e-3
    rank: Annotated[int, Range(0)] = 8
    adapter_scale: Annotated[float, Range(0, low_included=False)] = 1.0
    temperature: Annotated[float, Range(0, low_included=False)] = 0.05

    @property
    def fit(self) -> FitConfig:
        """What concerns phi."""
        return FitConfig(
            hidden=self.hidden,
            layers=self.layers,
            noise=self.noise,
            cosine=self.cosine,
            temperature=self.temperature,
            steps=self.map_steps,
            batch=self.map_batch,
            rate=self.map_rate,
        )


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices that train.

    Args:
        base: The layer.
        rank: Inner dimension of the product.
        scale: What the product is multiplied by.

    Attributes:
        is_on: Whether the product counts; without it the layer is what it was, to the last bit.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = scale
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        whole: Tensor = self.base(x)
        if not self.is_on:
            return whole
        return whole + self.scale * functional.linear(functional.linear(x, self.down), self.up)


class MappedHead(nn.Module):
    """A tower's output to vectors of the old space.

    Args:
        inner: What made vectors of it before; None for projection and unit length.
        project: The model's projection.
        mapping: From the new space to the old one.
    """

    def __init__(self, inner: Head | None, project: nn.Module, mapping: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        # In a tuple they are no parts of this module: their weights belong to the model.
        self._shared = (project, mapping)

    def forward(self, encoded: Encoded) -> Tensor:
        """To unit vectors float32 (B, O)."""
        project, mapping = self._shared
        if self.inner is not None:
            own = self.inner(encoded)
        else:
            own = functional.normalize(project(encoded.pooled).float(), dim=-1)
        with torch.autocast(own.device.type, enabled=False):
            mapped: Tensor = mapping(own.float())
        return mapped


def put_adapter(
    model: DualEncoder, config: Config, mapping: nn.Module, space: Space
) -> DualEncoder:
    """Have a model ask in the space of another one, in place.

    Args:
        model: The new model.
        config: For the adapters of low rank.
        mapping: From its space to the old one.
        space: The old model's.

    Returns:
        The model.

    Raises:
        ConfigError: It has a map to another space already.
    """
    if _MAP in dict(model.named_children()):
        raise ConfigError(
            f"{model.name} has a map to another model's space already",
            hint="start from the model that it was made of",
        )
    model.add_module(_MAP, mapping.to(model.device))
    for name, project in (("image", model.image_projection), ("text", model.text_projection)):
        inner = getattr(model, f"{name}_head")
        _set_head(model, name, MappedHead(inner, project, mapping))
    if config.rank:
        for tower in (model.vision, model.text):
            _put_low_rank(tower.transformer, config)
    model.config = replace(model.config, dim=space.dim, query_space=space)
    return model.to(model.device)


def _set_head(model: DualEncoder, name: str, head: Head | None) -> None:
    # torch takes no None or module in place of the other kind otherwise.
    delattr(model, f"{name}_head")
    setattr(model, f"{name}_head", head)


def _put_low_rank(transformer: Transformer, config: Config) -> None:
    for layer in transformer.layers:
        attention = cast(nn.Module, layer.attention)
        for name in ("qkv", "out"):
            base = cast(nn.Linear, attention.get_submodule(name))
            setattr(attention, name, LowRank(base, config.rank, config.adapter_scale))


def low_ranks(model: nn.Module) -> list[LowRank]:
    """The adapters of a model."""
    return [module for module in model.modules() if isinstance(module, LowRank)]


@contextlib.contextmanager
def adapters_off(model: DualEncoder) -> Iterator[None]:
    """The towers as they were before stage 2; phi stays."""
    adapters = low_ranks(model)
    for adapter in adapters:
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True


def without_adapter(model: DualEncoder) -> DualEncoder:
    """The new model as it was: a copy, whose vectors and space are the same to the last bit.

    Args:
        model: With the adapter as its last method.

    Raises:
        ConfigError: It has none, or was changed afterwards.
    """
    methods = model.config.methods
    if not methods or methods[-1].split()[0] != CARD["name"]:
        raise ConfigError(
            f"the last method of {model.name} is {methods[-1] if methods else 'none'}, expected "
            f"{CARD['name']}",
            hint="load the new model itself",
        )
    plain = copy.deepcopy(model)
    for name in ("image", "text"):
        _set_head(plain, name, cast(MappedHead, getattr(plain, f"{name}_head")).inner)
    delattr(plain, _MAP)
    for tower in (plain.vision, plain.text):
        for layer in tower.transformer.layers:
            attention = cast(nn.Module, layer.attention)
            for name in ("qkv", "out"):
                found = attention.get_submodule(name)
                setattr(attention, name, found.base if isinstance(found, LowRank) else found)
    plain.config = replace(
        model.config,
        dim=plain.text_projection.out_features,
        methods=methods[:-1],
        query_space=None,
        in_query_space=False,
    )
    return plain


class XbtObjective(nn.Module):
    """Stage 2: pictures, through phi, to the texts before and with the adapters.

    Args:
        temperature: Divides the similarities.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def init_state(self, model: DualEncoder) -> nn.Module:
        """Nothing is carried from step to step."""
        del model
        return nn.Module()

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Nothing to do."""

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """The loss of a batch; row b * K + k of texts is caption k of picture b.

        Args:
            model: Reads the texts once more, without adapters.
            batch: Slots `image` and `text`.
            features: The clean pass over them.
            state: Of `init_state`.

        Returns:
            The sum of both contrasts; each for the log.
        """
        del state
        image, text = features["image"].pooled, features["text"].pooled
        parts = {
            "target": self._contrast(image, pseudo_old(model, batch), batch),
            "pair": self._contrast(image, text, batch),
        }
        total = parts["target"] + parts["pair"]
        return Losses(total=total, parts={name: value.detach() for name, value in parts.items()})

    def _contrast(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """Mean of both directions; other pairs of the same group are left out."""
        captions = len(text) // len(image)
        weight, groups = (each.repeat_interleave(captions) for each in (batch.weight, batch.groups))
        own = torch.arange(len(text), device=text.device) + rank() * len(text)
        related = groups[:, None] == gather_rows(groups)[None, :]
        absent = (gather_rows(weight) <= 0)[None, :].expand_as(related)
        absent = absent.scatter(1, own[:, None], value=False)
        pictures = image.repeat_interleave(captions, dim=0)
        rows = torch.zeros_like(weight)
        with torch.autocast(image.device.type, enabled=False):
            for queries, keys in ((pictures, text), (text, pictures)):
                every = gather_rows_with_gradient(keys.float())
                scores = queries.float() @ every.T / self.temperature
                scores = scores.masked_fill(absent, float("-inf"))
                rows = rows + contrast_rows(scores, own, related, "remove") / 2
        return mean_across(rows, weight)


@torch.no_grad()
def pseudo_old(model: DualEncoder, batch: Batch) -> Tensor:
    """Texts through the towers without adapters, and phi: what the old model would say of them.

    Args:
        model: With an adapter.
        batch: Slots `text.ids` and `text.mask`, int64 (B, K, T).

    Returns:
        Unit vectors float32 (B * K, O), without dropout.
    """
    ids, mask = (batch.slots[f"text.{name}"].flatten(0, 1) for name in ("ids", "mask"))
    was_training = model.text.training
    model.text.eval()
    try:
        with adapters_off(model):
            return model.embed_tokens(ids, mask)
    finally:
        model.text.train(was_training)


def parts(config: Config, base: Base) -> Parts:
    """XBT for a model.

    Args:
        config: Settings.
        base: The new model; its training fits phi here.

    Returns:
        Surgery and evaluation; for training stage 2, where there are adapters to train.

    Raises:
        ConfigError: No old model is named, or one whose index holds several vectors an item.
        DataError: The training data has no texts.
    """
    evaluation = (UpgradeEvaluation(config.old),)
    if base.training is None:
        return Parts(surgery=(_refill(config),), evaluation=evaluation)
    mapping, space = _fit(config, base.model, base.training, base.seed)

    def surgery(model: DualEncoder) -> DualEncoder:
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(base.seed)
            put_adapter(model, config, mapping, space)
        model.config = replace(model.config, in_query_space=True)
        return model

    return Parts(
        surgery=(surgery,),
        objective=((1.0, XbtObjective(config.temperature)),) if config.rank else (),
        reads=("image", "text") if config.rank else (),
        evaluation=evaluation,
    )


def _refill(config: Config) -> Callable[[DualEncoder], DualEncoder]:
    """Surgery for a saved model, whose weights are about to be filled in."""

    def surgery(model: DualEncoder) -> DualEncoder:
        space = model.config.query_space
        if space is None:
            raise ConfigError(
                "xbt is trained before it is used",
                hint="costream train xbt --set old=NAME_OR_DIR --data DATA --out DIR",
            )
        inputs = model.config.dim
        return put_adapter(
            model, config, empty_map(config.projection, inputs, space.dim, config.fit), space
        )

    return surgery


def _fit(
    config: Config, model: DualEncoder, training: Training, seed: int
) -> tuple[nn.Module, Space]:
    """Stage 1: the map from the new model's vectors to the old one's, and the old space."""
    from costream.system import load_system

    if not config.old:
        raise ConfigError(
            "xbt maps to the space of an old model, got none",
            hint="--set old=NAME_OR_DIR, the model that made the index",
        )
    system = load_system(config.old, device=str(model.device))
    old = system.model
    if system.parts.index is not None:
        raise ConfigError(
            f"indexes of {old.name} hold several vectors an item, expected one",
            hint="name a model whose indexes hold one vector an item",
        )
    captions = (text for each in training.data.samples for text in each.slots.get("text") or ())
    texts = list(dict.fromkeys(captions))
    if len(texts) < 2:
        raise DataError(
            f"{training.data.name} has {len(texts)} different captions, expected at least 2",
            hint="name data with captions",
        )
    done, total = 0, 2 * len(texts)

    def progress(count: int) -> None:
        nonlocal done
        done += count
        training.tell("reading the captions with both models", done, total)

    new_NI, old_NO = (
        torch.from_numpy(each.encode_texts(texts, progress=progress)) for each in (model, old)
    )
    mapping = fit_map(
        config.projection,
        new_NI,
        old_NO,
        config.fit,
        seed=seed,
        progress=lambda step, steps: training.tell("fitting the map", step, steps),
    )
    return mapping, old.space


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """Queries of a new model on an old gallery: against the old queries, and the closed form.

    Args:
        options: With `flickr8k` below its data root the new model is the shipped one; else both
            are small models of procedural scenes.

    Returns:
        Tables with a verdict for every comparison.
    """
    from costream.methods._xbt.claim import reproduce

    return reproduce(options)
