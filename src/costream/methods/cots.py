"""COTS: two-stream pre-training with interaction at instance, token and task level.

Idea: a two-stream model is thousands of times faster at retrieval than a joint one, but its streams
never meet. COTS lets them meet in the losses only: momentum contrast between pairs, masked
prediction in each stream that is told the other stream's one global vector, and agreement of the
two retrieval tasks' distributions; pairs that do not belong together are filtered by the running
distribution of their similarity.

Equations, with f the online and g the momentum vectors of image v and text l, Q the queues:

    instance  L_i2t = -log softmax([f_v . g_l, f_v . Q_l] / tau)[0];  L_t2i with v and l swapped
    token     -log softmax(W (LN(p) + A f_l))[t] for masked patch outputs p with visual code t,
              -log softmax(MLM(u + A' f_v))[w] for masked word outputs u with word w
    task      KL(softmax([f_v . g_l, f_v . Q_l] / tau) || softmax([f_l . g_v, f_l . Q_v] / tau))
    filter    a pair counts when g_v . g_l >= mean - k * deviation of the recent ones

Shapes: B pictures, K captions a picture, N = B * K pairs, D dimensions, M columns, T tokens.

Source: Lu, Fei, Huo, Gao, Lu, Wen, "COTS: Collaborative Two-Stream Vision-Language Pre-Training
Model for Cross-Modal Retrieval" (CVPR 2022). No code was published. The forms of the losses follow
the paper's abstract and the mechanics of MoCo, BriVL, ALBEF and BEiT, which it builds on; tau,
queue size, masking shares, the conditioning operator, the direction of the KL term and k are from
memory and are options here.

Differs: several captions a picture are used at once; unfilled queue columns are masked instead of
being contrasted with noise; the momentum weights follow after the optimiser step, which gives the
same keys as following before the next forward pass; images may be masked on the map of a
convolutional stem.

Costs: two passes more a tower while training; nothing at inference. Index impact: reencode.

Claim: each interaction adds to contrast alone, and the filter helps when captions are mismatched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.data import open_image
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import ImagePreprocess
from costream.errors import ConfigError
from costream.objectives import Losses
from costream.objectives.align import Direction, kl_rows
from costream.objectives.contrast import Siblings, contrast_rows
from costream.objectives.filter import SimilarityFilter
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
)
from costream.objectives.masking import block_mask, mask_words
from costream.objectives.momentum import PairedQueue, follow, momentum_copy
from costream.parts import Base, Parts
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.encoders.visual_tokenizer import AnyTokenizer, VisualTokenizer

CARD = {
    "name": "cots",
    "title": "COTS: Collaborative Two-Stream Vision-Language Pre-Training Model",
    "paper": "Lu et al., CVPR 2022, pp. 15692-15701",
    "year": 2022,
    "kind": "objective",
    "slots": ("objective",),
    "index_impact": "reencode",
    "losses": ("contrast", "mvm", "mlm", "kl"),
    "summary": "Momentum contrast, masked modelling without a cross-stream module, KL alignment of "
    "the two retrieval tasks, and a filter for mismatched pairs.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of COTS; the defaults are those of the paper as far as known.

    Attributes:
        contrast: Weight of the instance-level loss.
        mvm: Weight of masked patch prediction; 0 also spares the passes.
        mlm: Weight of masked word prediction; 0 also spares the pass.
        kl: Weight of the alignment of the two retrieval distributions.
        temperature: Divides the similarities.
        learn_temperature: Whether the temperature trains, within [0.01, 0.5].
        momentum: Share of the old weights that the momentum towers keep a step.
        queue_size: Past pairs that serve as negatives.
        in_batch: Whether the momentum keys of the other pairs of the batch are negatives beside the
            queue: `none` (MoCo, BriVL) or `momentum` (ALBEF).
        online: Weight of plain contrast within the batch beside it, between online vectors, whose
            gradient flows into both sides (CLIP). Kept apart from the queue: in one softmax the
            model would learn to tell fresh vectors from stale ones.
        siblings: What other captions of the same picture are.
        kl_direction: Which way the divergence is taken.
        soft_targets: Share of the momentum towers' own distribution in the targets (ALBEF); 0 is off.
        mask_patches: Share of patches masked.
        mask_words: Share of words masked.
        condition: How the partner's global vector enters masked prediction: `add_projected`
            (LN(p) + A f), `add` (p + f, equal widths), `concat_linear` (A [p; f]), or `none`.
        detach_condition: Whether masked prediction leaves the partner's tower alone.
        visual_tokenizer: Where the codes of masked patches come from: `kmeans` or `dvae`, fitted on
            the training pictures, or the directory of a saved tokenizer.
        visual_codes: Number of codes of a fitted tokenizer.
        filter_k: Deviations below the mean at which a pair is left out; None switches it off.
        filter_window: Pairs over which mean and deviation are taken.
        filter_warm_up: Pairs seen before the filter starts.
    """

    contrast: float = 1.0
    mvm: float = 1.0
    mlm: float = 1.0
    kl: float = 1.0
    temperature: float = 0.05
    learn_temperature: bool = False
    momentum: float = 0.99
    queue_size: int = 12_800
    in_batch: Literal["none", "momentum"] = "none"
    online: float = 0.0
    siblings: Literal["negative", "remove", "positive"] = "remove"
    kl_direction: Literal["forward", "reverse", "symmetric"] = "symmetric"
    soft_targets: float = 0.0
    mask_patches: float = 0.4
    mask_words: float = 0.15
    condition: Literal["add", "add_projected", "concat_linear", "none"] = "add_projected"
    detach_condition: bool = False
    visual_tokenizer: str = "dvae"
    visual_codes: int = 512
    filter_k: float | None = 2.0
    filter_window: int = 4096
    filter_warm_up: int = 1024


class State(nn.Module):
    """What COTS carries from step to step: momentum towers, paired queues, filter statistics."""

    def __init__(self, model: DualEncoder, config: Config) -> None:
        super().__init__()
        self.momentum = momentum_copy(model)
        self.queue = PairedQueue(config.queue_size, model.config.dim)
        self.filter = SimilarityFilter(
            k=config.filter_k, window=config.filter_window, warm_up=config.filter_warm_up
        )


class Condition(nn.Module):
    """Tells masked tokens (N, W) the partner's global vector (N, D); returns (N, W)."""

    def __init__(
        self, width: int, dim: int, how: Literal["add", "add_projected", "concat_linear", "none"]
    ) -> None:
        super().__init__()
        if how == "add" and width != dim:
            raise ValueError(f"condition='add' needs equal widths, got tokens {width}, vector {dim}")
        self.how = how
        self.norm = nn.LayerNorm(width)
        inputs = {"add_projected": dim, "concat_linear": width + dim}.get(how)
        self.linear = None if inputs is None else nn.Linear(inputs, width)

    def forward(self, tokens: Tensor, partner: Tensor) -> Tensor:
        """Tokens (N, W) and the partner's vector of each (N, D) to (N, W)."""
        if self.how == "none":
            return cast(Tensor, self.norm(tokens))
        if self.how == "add":
            return tokens + partner
        assert self.linear is not None
        if self.how == "concat_linear":
            return cast(Tensor, self.linear(torch.cat([self.norm(tokens), partner], dim=-1)))
        return cast(Tensor, self.norm(tokens) + self.linear(partner))


class PatchHead(nn.Module):
    """Predicts the visual codes of masked patches."""

    def __init__(self, width: int, dim: int, codes: int, config: Config) -> None:
        super().__init__()
        self.mask_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.condition = Condition(width, dim, config.condition)
        self.classify = nn.Linear(width, codes)

    def forward(self, tokens: Tensor, partner: Tensor) -> Tensor:
        """Masked outputs (M, W) and partners (M, D) to logits (M, codes)."""
        return cast(Tensor, self.classify(self.condition(tokens, partner)))


class WordHead(nn.Module):
    """Predicts masked words; its last layer is the text tower's embedding table (BERT)."""

    def __init__(self, width: int, dim: int, vocabulary: int, config: Config) -> None:
        super().__init__()
        self.condition = Condition(width, dim, config.condition)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, tokens: Tensor, partner: Tensor, table: Tensor) -> Tensor:
        """Masked outputs (M, W), partners (M, D), embeddings (V, W) to logits (M, V)."""
        inner = self.norm(functional.gelu(self.dense(self.condition(tokens, partner))))
        return functional.linear(inner, table, self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Token ids that masking must know.

    Attributes:
        mask: Id of the mask token.
        special: Ids never masked.
        vocabulary: Number of ids.
    """

    mask: int
    special: tuple[int, ...]
    vocabulary: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """One clean pass over a batch, as pairs."""

    stem_map: Tensor
    image: Tensor
    text: Tensor


def pair_scores(
    queries_ND: Tensor, keys_MD: Tensor, queue_KD: Tensor, inverse_temperature: Tensor
) -> Tensor:
    """Scores (N, M + K) of queries against the batch's keys, then the queue's, over temperature."""
    with torch.autocast(queries_ND.device.type, enabled=False):
        return queries_ND.float() @ torch.cat([keys_MD, queue_KD]).float().T * inverse_temperature


class CotsObjective(nn.Module):
    """All losses of COTS over one batch.

    Args:
        config: Weights and settings.
        model: The model to be trained, for its sizes.
        tokenizer: Makes the visual codes; needed when `mvm` is above 0.
        words: Needed when `mlm` is above 0.

    Raises:
        ValueError: When a loss is on and what it needs is not given.
    """

    def __init__(
        self,
        config: Config,
        model: DualEncoder,
        *,
        tokenizer: VisualTokenizer | None = None,
        words: Words | None = None,
    ) -> None:
        super().__init__()
        if config.mvm > 0 and tokenizer is None:
            raise ValueError("mvm > 0 needs a visual tokenizer, got None; pass one or set mvm=0")
        if config.mlm > 0 and words is None:
            raise ValueError("mlm > 0 needs the mask token's id, got None; pass it or set mlm=0")
        self.config = config
        self.tokenizer = tokenizer
        self.words = words
        self.log_temperature = nn.Parameter(
            torch.tensor(config.temperature).log(), requires_grad=config.learn_temperature
        )
        dim = model.config.dim
        self.patch_head: PatchHead | None = None
        self.word_head: WordHead | None = None
        if config.mvm > 0 and tokenizer is not None:
            codes = tokenizer.vocab_size
            self.patch_head = PatchHead(model.vision.width, dim, codes, config)
        if config.mlm > 0 and words is not None:
            self.word_head = WordHead(model.text.width, dim, words.vocabulary, config)

    def init_state(self, model: DualEncoder) -> State:
        """Momentum towers equal to the model, empty queues, no statistics."""
        return State(model, self.config).to(model.device)

    def after_step(self, model: DualEncoder, state: nn.Module) -> None:
        """Let the momentum towers follow, and keep the temperature in its range."""
        assert isinstance(state, State)
        follow(state.momentum, model, self.config.momentum)
        with torch.no_grad():
            self.log_temperature.clamp_(torch.tensor(0.01).log(), torch.tensor(0.5).log())

    def loss(
        self,
        model: DualEncoder,
        batch: Batch,
        features: Mapping[str, Features],
        state: nn.Module,
    ) -> Losses:
        """All losses of one batch; afterwards its momentum keys are in the queue.

        Args:
            model: Online towers.
            batch: Slots `image` uint8 (B, 3, H, W), `text.ids` and `text.mask` int64 (B, K, T).
            features: The online towers' clean pass over the batch.
            state: Of `init_state`.

        Returns:
            The weighted sum and its parts.
        """
        assert isinstance(state, State)
        captions = batch.slots["text.ids"].shape[1]
        groups = batch.groups.repeat_interleave(captions)
        trust = batch.weight.repeat_interleave(captions)
        online = _pairs(features, captions)
        frozen = features["image"].extras["frozen"]
        with torch.no_grad():
            keys = _pairs(state.momentum.features(batch, frozen), captions)
        similarity = (keys.image * keys.text).sum(dim=1)
        kept = state.filter.kept(similarity) & (trust > 0)
        state.filter.push(gather_rows(similarity))
        weight = trust * kept

        parts = self._contrast(online, keys, state.queue, groups, weight)
        if self.patch_head is not None:
            picture_weight = weight.view(-1, captions)
            parts["mvm"] = self._masked_patches(model, online, batch, picture_weight)
        if self.word_head is not None:
            parts["mlm"] = self._masked_words(model, online, batch, weight)

        everywhere = gather_rows(kept)
        state.queue.push(
            gather_rows(keys.image)[everywhere],
            gather_rows(keys.text)[everywhere],
            gather_rows(groups)[everywhere],
        )
        weights = loss_weights(self.config)
        total = sum((weights[name] * value for name, value in parts.items()), trust.new_zeros(()))
        log = {name: value.detach() for name, value in parts.items()}
        log["kept"] = everywhere.float().mean()
        log["similarity"] = gather_rows(similarity).mean()
        return Losses(total=total, parts=log)

    def _contrast(
        self, online: _Pass, keys: _Pass, queue: PairedQueue, groups: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        queue_image, queue_text, queue_groups = queue.contents()
        key_image, key_text = gather_rows(keys.image), gather_rows(keys.text)
        key_groups = torch.cat([gather_rows(groups), queue_groups])
        count = len(groups)
        own = torch.arange(count, device=groups.device) + rank() * count
        related = groups[:, None] == key_groups[None, :]
        inverse = torch.exp(-self.log_temperature)
        scores_i2t = pair_scores(online.image, key_text, queue_text, inverse)
        scores_t2i = pair_scores(online.text, key_image, queue_image, inverse)
        if config.in_batch == "none":
            others = torch.ones_like(related)
            others[:, : len(key_image)] = False
            others[torch.arange(count, device=own.device), own] = True
            scores_i2t = scores_i2t.masked_fill(~others, float("-inf"))
            scores_t2i = scores_t2i.masked_fill(~others, float("-inf"))
            related = related & others

        rows_i2t = contrast_rows(scores_i2t, own, related, config.siblings)
        rows_t2i = contrast_rows(scores_t2i, own, related, config.siblings)
        if config.soft_targets > 0:
            share = config.soft_targets
            with torch.no_grad():
                all_text = torch.cat([gather_rows(keys.text), queue_text])
                all_image = torch.cat([gather_rows(keys.image), queue_image])
                soft_i2t = (keys.image @ all_text.T * inverse).masked_fill(
                    scores_i2t.isneginf(), float("-inf")
                )
                soft_t2i = (keys.text @ all_image.T * inverse).masked_fill(
                    scores_t2i.isneginf(), float("-inf")
                )
            rows_i2t = (1 - share) * rows_i2t + share * _cross_entropy(scores_i2t, soft_i2t)
            rows_t2i = (1 - share) * rows_t2i + share * _cross_entropy(scores_t2i, soft_t2i)
        parts = {"contrast": mean_across(rows_i2t + rows_t2i, weight)}
        if config.kl > 0:
            # A trained temperature could lower the divergence by flattening both sides.
            fixed = inverse.detach() / inverse
            left, right = scores_i2t * fixed, scores_t2i * fixed
            if config.siblings == "remove":
                drop = related & (functional.one_hot(own, related.shape[1]) == 0)
                left = left.masked_fill(drop, float("-inf"))
                right = right.masked_fill(drop, float("-inf"))
            parts["kl"] = mean_across(kl_rows(left, right, config.kl_direction), weight)
        if config.online > 0:
            parts["online"] = self._online_contrast(online, own, groups, weight)
        return parts

    def _online_contrast(
        self, online: _Pass, own: Tensor, groups: Tensor, weight: Tensor
    ) -> Tensor:
        related = groups[:, None] == gather_rows(groups)[None, :]
        inverse = torch.exp(-self.log_temperature)
        nothing = online.image.new_zeros(0, online.image.shape[1])
        all_image = gather_rows_with_gradient(online.image)
        all_text = gather_rows_with_gradient(online.text)
        rows = [
            contrast_rows(
                pair_scores(queries, keys, nothing, inverse), own, related, self.config.siblings
            )
            for queries, keys in ((online.image, all_text), (online.text, all_image))
        ]
        return mean_across(rows[0] + rows[1], weight)

    def _masked_patches(
        self, model: DualEncoder, online: _Pass, batch: Batch, weight_BK: Tensor
    ) -> Tensor:
        assert self.patch_head is not None and self.tokenizer is not None
        patches = model.vision.patches_of_map(online.stem_map)
        rows, columns = model.vision.grid_of(online.stem_map)
        share = self.config.mask_patches
        mask = torch.cat(
            [
                block_mask(1, rows, columns, share=share, generator=_generator(seed))
                for seed in batch.seeds.tolist()
            ]
        ).to(patches.device)
        side = self.tokenizer.pixels_per_token
        small = functional.interpolate(
            batch.slots["image"].float(), (rows * side, columns * side), mode="area"
        )
        codes = self.tokenizer.encode(small.round().to(torch.uint8)).flatten(1)
        filler = self.patch_head.mask_embedding.to(patches.dtype)
        masked = torch.where(mask[..., None], filler, patches)
        encoded = model.vision.encode_map(online.stem_map, patches=masked)
        outputs = encoded.tokens[:, -mask.shape[1] :]
        # With several captions a picture, the first one is told to the masked patches.
        partner = online.text.view(*weight_BK.shape, -1)[:, 0]
        if self.config.detach_condition:
            partner = partner.detach()
        row, _ = mask.nonzero(as_tuple=True)
        logits = self.patch_head(outputs[mask], partner[row])
        values = functional.cross_entropy(logits.float(), codes[mask], reduction="none")
        return mean_across(values, weight_BK[row, 0])

    def _masked_words(
        self, model: DualEncoder, online: _Pass, batch: Batch, weight: Tensor
    ) -> Tensor:
        assert self.word_head is not None and self.words is not None
        captions = batch.slots["text.ids"].shape[1]
        ids = batch.slots["text.ids"].flatten(0, 1)
        real = batch.slots["text.mask"].flatten(0, 1).bool()
        masked_ids, target = ids.clone(), torch.zeros_like(real)
        for number, seed in enumerate(batch.seeds.tolist()):
            rows = slice(number * captions, (number + 1) * captions)
            masked_ids[rows], target[rows] = mask_words(
                ids[rows],
                real[rows],
                share=self.config.mask_words,
                mask_id=self.words.mask,
                vocab_size=self.words.vocabulary,
                special_ids=self.words.special,
                generator=_generator(seed + 1),
            )
        encoded = model.text(masked_ids, real)
        partner = online.image.detach() if self.config.detach_condition else online.image
        row, _ = target.nonzero(as_tuple=True)
        table = model.text.token_embedding.weight
        logits = self.word_head(encoded.tokens[target], partner[row], table)
        values = functional.cross_entropy(logits.float(), ids[target], reduction="none")
        return mean_across(values, weight[row])


def loss_weights(config: Config) -> dict[str, float]:
    """Weight of each loss by name."""
    return {
        "contrast": config.contrast,
        "online": config.online,
        "mvm": config.mvm,
        "mlm": config.mlm,
        "kl": config.kl,
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cross_entropy(scores_NM: Tensor, target_NM: Tensor) -> Tensor:
    """Cross-entropy (N,) of softmax(target) against softmax(scores); -inf columns count nothing."""
    log_p = functional.log_softmax(scores_NM.float(), dim=1)
    log_p = log_p.masked_fill(target_NM.isneginf(), 0.0)
    return -(functional.softmax(target_NM.float(), dim=1) * log_p).sum(dim=1)


def _pairs(features: Mapping[str, Features], captions: int) -> _Pass:
    """One row a pair (picture, caption)."""
    return _Pass(
        stem_map=features["image"].extras["stem_map"],
        image=features["image"].pooled.repeat_interleave(captions, dim=0),
        text=features["text"].pooled,
    )


def parts(config: Config, base: Base) -> Parts:
    """COTS for a model and its training data.

    Args:
        config: Settings.
        base: The model, the data, and where a fitted visual tokenizer is kept.
    """
    tokenizer = _visual_tokenizer(config, base) if config.mvm > 0 else None
    words = words_of(base.model) if config.mlm > 0 else None
    objective = CotsObjective(config, base.model, tokenizer=tokenizer, words=words)
    return Parts(objective=((1.0, objective),))


def words_of(model: DualEncoder) -> Words:
    """The ids that masking needs, from the model's tokenizer.

    Raises:
        ConfigError: When the tokenizer has no mask token.
    """
    mask = model.tokenizer.token_to_id("[MASK]")
    if mask is None:
        raise ConfigError(
            f"the tokenizer of {model.name} has no [MASK] token", hint="train with --set mlm=0"
        )
    names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
    ids = (model.tokenizer.token_to_id(name) for name in names)
    special = tuple(number for number in ids if number is not None)
    return Words(mask=mask, special=special, vocabulary=model.config.text.vocab_size)


def _visual_tokenizer(config: Config, base: Base) -> VisualTokenizer:
    """The saved tokenizer of an earlier start of the run, or a new one fitted on its pictures."""
    from costream.encoders.visual_tokenizer import load_tokenizer_model, save_tokenizer

    fitted = config.visual_tokenizer in ("kmeans", "dvae")
    directory = base.directory / "visual_tokenizer" if fitted else Path(config.visual_tokenizer)
    if fitted and not (directory / "visual_tokenizer.json").exists():
        save_tokenizer(_fit_tokenizer(config, base), directory)
    return load_tokenizer_model(directory)


def _fit_tokenizer(config: Config, base: Base) -> AnyTokenizer:
    from costream.encoders.visual_tokenizer import (
        DiscreteVaeConfig,
        KMeansTokenizer,
        fit_discrete_vae,
    )

    pictures = _small_pictures(base)
    if config.visual_tokenizer == "kmeans":
        return KMeansTokenizer.fit(pictures, vocab_size=config.visual_codes, seed=base.seed)
    form = DiscreteVaeConfig(vocab_size=config.visual_codes)
    return fit_discrete_vae(pictures, form, seed=base.seed).tokenizer


def _small_pictures(base: Base, most: int = 2000, side_px: int = 64) -> Tensor:
    """Up to `most` training pictures, as small as a tokenizer sees them: uint8 (N, 3, 64, 64)."""
    settings = ImagePreprocess(size_px=side_px)
    order = np.random.default_rng(base.seed).permutation(len(base.data.samples))[:most]
    pixels = [
        settings.pixels(open_image(base.data.samples[number].slots["image"], smallest_side=side_px))
        for number in order
    ]
    return torch.from_numpy(np.stack(pixels))
