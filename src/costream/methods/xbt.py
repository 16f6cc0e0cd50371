"""XBT: a new model that asks the index of an old one, without the gallery being embedded again.

Idea: an index of millions of pictures outlives the model that made it. A small map phi from the new
model's vectors to the old one's is learned from texts alone, with noise, for it will be applied to
pictures, which lie where no text lies. Then adapters of low rank in both new towers learn, from few
pictures, to look right through phi. The gallery never changes.

Equations, with unit vectors a = f_new(t), b = f_old(t) of a text t, and n() for unit length:

    stage 1   a~ = n(a + sigma eps), eps ~ N(0, I/d)
              L1 = NCE(phi(a~), b) + c (1 - cos(phi(a~), b))
    stage 2   b^ = phi(f_new(t)), without adapters, no gradient; phi and the towers are frozen
              L2 = NCE(phi(f'(x)), b^) + NCE(phi(f'(x)), phi(f'(t)))    for picture x, text t
    serving   phi(f'(query)) against the old gallery
    NCE       contrast in both directions over the batch

    closed form   phi(a) = n(a R), R = P Q^T with V^T U = P S Q^T (Procrustes)
    flips         PFR = P(old wrong, new right), NFR = P(old right, new wrong), gain = PFR - NFR
    compatible    new queries beat old queries on the old gallery, strictly, in both directions

Shapes: N texts, B pairs of a batch, I dimensions of the new model, O of the old one.

Source: "Towards Cross-modal Backward-compatible Representation Learning for Vision-Language Models"
(ICCV 2025), by the specification of this library: the stages, their order and the criterion are the
abstract's and a third party's. Form of phi, both losses, noise, temperature, and rank and place of
the adapters are reconstructions, for no code was found. Procrustes, and the great circle between
the old query and the mapped one (`slerp`), are of the follow-up that names
miccunifi/SLERP_backward_compatibility; both are baselines here.

Differs: no soft prompts. Adapters sit in the attention of every layer of both towers. Texts that
are alike count once in stage 1.

A saved model says in whose space it asks (`DualConfig.query_space`), and indexes of the old model
take its queries. It embeds no items, although phi maps pictures, too: the paper promises queries
only, and an index of mixed vectors would rank its newer items otherwise than its older ones.
`costream index` refuses it and names the old model. `without_adapter` gives back the new model to
the last bit. `steps=0 rank=0` is stage 1 alone.

Costs: both text towers read every caption once; a step of stage 2 reads the texts twice. A query
passes phi besides: some 10^5 multiplications. Index impact: query_only.

Claim: the new model's queries beat the old one's on the old one's gallery in both directions, and
the closed form's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from costream.config import Range
from costream.encoders.dual import DualEncoder
from costream.errors import ConfigError, DataError
from costream.methods._xbt.adapter import adapters_off, put_adapter
from costream.methods._xbt.maps import FitConfig, Projection, empty_map, fit_map
from costream.methods._xbt.upgrade import UpgradeEvaluation
from costream.objectives import Losses, Objective
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
    "scale": "Published with large pretrained models; in a third party's figures CLIP L/14 asks a "
    "gallery of B/32, where the gain is 1 to 4 points. Noise and the second stage pay with towers "
    "that have seen more than 200 steps of training, and with more than 40 steps.",
}


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


class XbtObjective(nn.Module, Objective):
    """Stage 2: pictures, through phi, to the texts before and with the adapters.

    Args:
        temperature: Divides the similarities.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

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
            "target": contrast(image, pseudo_old(model, batch), batch, self.temperature),
            "pair": contrast(image, text, batch, self.temperature),
        }
        total = parts["target"] + parts["pair"]
        return Losses(total=total, parts={name: value.detach() for name, value in parts.items()})


def contrast(image: Tensor, text: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Mean of both directions' contrast; other pairs of the same group are left out.

    Args:
        image: Unit vectors (B, O).
        text: Unit vectors (B * K, O), the captions of picture b in rows b * K on.
        batch: Weights and groups of its B pictures.
        temperature: Divides the similarities.
    """
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
            scores = queries.float() @ every.T / temperature
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
            _put(model, config, mapping, space)
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
        mapping = empty_map(config.projection, inputs, space.dim, config.fit)
        return _put(model, config, mapping, space)

    return surgery


def _put(model: DualEncoder, config: Config, mapping: nn.Module, space: Space) -> DualEncoder:
    return put_adapter(model, mapping, space, rank=config.rank, scale=config.adapter_scale)


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
