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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from costream.config import Range
from costream.data import open_image
from costream.data.dataset import picture_of
from costream.encoders.dual import DualEncoder
from costream.encoders.preprocess import ImagePreprocess
from costream.errors import ConfigError, DataError
from costream.objectives import Losses
from costream.objectives.align import kl_rows
from costream.objectives.contrast import contrast_rows
from costream.objectives.filter import SimilarityFilter
from costream.objectives.gather import (
    gather_rows,
    gather_rows_with_gradient,
    mean_across,
    rank,
    wait_for_all,
)
from costream.objectives.masking import block_mask, mask_words
from costream.objectives.momentum import PairedQueue, follow, momentum_copy
from costream.objectives.temperature import Temperature
from costream.parts import Base, Parts, Training
from costream.records import Batch, Features

if TYPE_CHECKING:
    from costream.encoders.visual_tokenizer import AnyTokenizer, VisualTokenizer
    from costream.evaluate import ClaimOptions, ClaimTable

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
    "scale": "Published with 5 to 15 million pairs, ViT-B and BERT-base from pretrained weights, "
    "batches of about 1,000 (all from memory). The 15,000 pairs and 240 steps here end while "
    "contrast alone still gains from every step; masked words and the agreement of tasks need so "
    "many steps that contrast no longer does.",
}


Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Operator = Literal["add", "add_projected", "concat_linear", "none"]

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 0.5
_TOKENIZER_STEPS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of COTS; the defaults are those of the paper as far as known.

    Attributes:
        contrast: Weight of the instance-level loss; a loss of weight 0 is not computed.
        mvm: Weight of masked patch prediction; 0 also spares a pass of the vision tower.
        mlm: Weight of masked word prediction; 0 also spares a pass of the text tower.
        kl: Weight of the alignment of the two retrieval distributions.
        temperature: Divides the similarities.
        learn_temperature: Whether the temperature trains, within [0.01, 0.5]. The alignment loss
            does not train it: it could make any two distributions alike by flattening both.
        momentum: Share of the old weights that the momentum towers keep a step.
        queue_size: Past pairs that serve as negatives.
        in_batch: Whether the momentum keys of the other pairs of the batch are negatives beside the
            queue: `none` (MoCo, BriVL) or `momentum` (ALBEF).
        online: Weight of plain contrast within the batch beside it, between online vectors, whose
            gradient flows into both sides (CLIP). Kept apart from the queue: in one softmax the
            model would learn to tell fresh vectors from stale ones.
        siblings: What other captions of the same picture are.
        kl_direction: Which way the divergence is taken.
        soft_targets: Share of the momentum towers' own distribution in the targets (ALBEF).
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
        enqueue_filtered: Whether pairs that were left out become negatives of later ones.
    """

    contrast: Weight = 1.0
    mvm: Weight = 1.0
    mlm: Weight = 1.0
    kl: Weight = 1.0
    temperature: Annotated[float, Range(0, low_included=False)] = 0.05
    learn_temperature: bool = False
    momentum: Share = 0.99
    queue_size: Annotated[int, Range(0)] = 12_800
    in_batch: Literal["none", "momentum"] = "none"
    online: Weight = 0.0
    siblings: Literal["negative", "remove", "positive"] = "remove"
    kl_direction: Literal["forward", "reverse", "symmetric"] = "symmetric"
    soft_targets: Share = 0.0
    mask_patches: Share = 0.4
    mask_words: Share = 0.15
    condition: Operator = "add_projected"
    detach_condition: bool = False
    visual_tokenizer: str = "dvae"
    visual_codes: Annotated[int, Range(2)] = 512
    filter_k: Annotated[float, Range(0)] | None = 2.0
    filter_window: Annotated[int, Range(2)] = 4096
    filter_warm_up: Annotated[int, Range(0)] = 1024
    enqueue_filtered: bool = False


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
    """Tells masked tokens (N, W) the partner's global vector (N, D); returns (N, W).

    Raises:
        ConfigError: When vectors are to be added to tokens of another width.
    """

    def __init__(self, width: int, dim: int, how: Operator) -> None:
        super().__init__()
        if how == "add" and width != dim:
            raise ConfigError(
                f"condition=add needs equal widths, got tokens of {width} and vectors of {dim}",
                hint="use condition=add_projected",
            )
        self.how = how
        self.norm = nn.LayerNorm(width)
        inputs = {"add_projected": dim, "concat_linear": width + dim}.get(how)
        self.linear = None if inputs is None else nn.Linear(inputs, width)

    def forward(self, tokens: Tensor, partner: Tensor) -> Tensor:
        """Tokens (N, W) and the partner's vector of each (N, D) to (N, W)."""
        if self.how == "add":
            return tokens + partner
        if self.linear is None:
            return cast(Tensor, self.norm(tokens))
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
        ConfigError: When a loss is on and what it needs is not given, all losses are off, or a
            temperature that trains starts outside its range.
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
        _check(config, tokenizer, words)
        self.config = config
        self.tokenizer = tokenizer
        self.words = words
        self.temperature = Temperature(
            config.temperature,
            least=LEAST_TEMPERATURE,
            greatest=GREATEST_TEMPERATURE,
            trains=config.learn_temperature,
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
        follow(_own(state).momentum, model, self.config.momentum)
        self.temperature.clamp()

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
            The weighted sum, and for the log each loss, the share of pairs `kept` by the filter and
            the mean `similarity` of the pairs in the momentum towers.

        Raises:
            NumericalError: When a momentum vector is not finite.
        """
        state = _own(state)
        captions = batch.slots["text.ids"].shape[1]
        groups = batch.groups.repeat_interleave(captions)
        trust = batch.weight.repeat_interleave(captions)
        online = _pairs(features, captions)
        frozen = features["image"].extras["frozen"]
        with torch.no_grad():
            keys = _pairs(state.momentum.features(batch, frozen), captions)
        similarity = (keys.image * keys.text).sum(dim=1)
        kept = state.filter.kept(similarity) & (trust > 0)
        state.filter.push(gather_rows(similarity)[gather_rows(trust > 0)])
        weight = trust * kept

        parts = self._contrast(online, keys, state.queue, groups, trust, weight)
        if self.patch_head is not None and self.tokenizer is not None:
            codes = self._codes(self.tokenizer, model, online, batch)
            parts["mvm"] = self._masked_patches(
                self.patch_head, codes, model, online, batch, weight.view(-1, captions)
            )
        if self.word_head is not None and self.words is not None:
            parts["mlm"] = self._masked_words(
                self.word_head, self.words, model, online, batch, weight
            )

        everywhere = gather_rows(kept)
        pushed = gather_rows(trust > 0) if self.config.enqueue_filtered else everywhere
        state.queue.push(
            gather_rows(keys.image)[pushed],
            gather_rows(keys.text)[pushed],
            gather_rows(groups)[pushed],
        )
        weights = loss_weights(self.config)
        total = sum((weights[name] * value for name, value in parts.items()), trust.new_zeros(()))
        log = {name: value.detach() for name, value in parts.items()}
        log["kept"] = everywhere.float().mean()
        log["similarity"] = gather_rows(similarity).mean()
        return Losses(total=total, parts=log)

    def _contrast(
        self,
        online: _Pass,
        keys: _Pass,
        queue: PairedQueue,
        groups: Tensor,
        trust: Tensor,
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """The losses that compare pairs: `contrast`, `kl` and `online`, those that are on.

        A pair of weight 0 is absent everywhere. One that was filtered has no loss of its own, but
        its picture and its text are as good as any others as negatives within the batch.
        """
        config = self.config
        queue_image, queue_text, queue_groups = queue.contents()
        key_image, key_text = gather_rows(keys.image), gather_rows(keys.text)
        key_groups = torch.cat([gather_rows(groups), queue_groups])
        count = len(groups)
        own = torch.arange(count, device=groups.device) + rank() * count
        own_NM = functional.one_hot(own, len(key_groups)).bool()
        related = groups[:, None] == key_groups[None, :]
        absent = torch.zeros_like(related)
        untrusted = gather_rows(trust <= 0)
        absent[:, : len(key_image)] = True if config.in_batch == "none" else untrusted
        if config.siblings == "remove":
            absent = absent | related
        absent = absent & ~own_NM

        def scores(queries: _Pass, inverse: Tensor) -> tuple[Tensor, Tensor]:
            """Both directions (N, M); column j is the same pair in both."""
            i2t = pair_scores(queries.image, key_text, queue_text, inverse)
            t2i = pair_scores(queries.text, key_image, queue_image, inverse)
            return i2t.masked_fill(absent, -math.inf), t2i.masked_fill(absent, -math.inf)

        inverse = self.temperature.inverse()
        both = scores(online, inverse)
        parts: dict[str, Tensor] = {}
        if config.contrast > 0:
            i2t, t2i = (contrast_rows(each, own, related, config.siblings) for each in both)
            if config.soft_targets > 0:
                share = config.soft_targets
                with torch.no_grad():
                    soft = scores(keys, inverse)
                i2t = (1 - share) * i2t + share * _cross_entropy(both[0], soft[0])
                t2i = (1 - share) * t2i + share * _cross_entropy(both[1], soft[1])
            parts["contrast"] = mean_across(i2t + t2i, weight)
        if config.kl > 0:
            # A trained temperature could lower the divergence by flattening both sides.
            fixed = scores(online, inverse.detach()) if config.learn_temperature else both
            parts["kl"] = mean_across(kl_rows(*fixed, config.kl_direction), weight)
        if config.online > 0:
            parts["online"] = self._online_contrast(online, own, groups, untrusted, weight)
        return parts

    def _online_contrast(
        self, online: _Pass, own: Tensor, groups: Tensor, untrusted: Tensor, weight: Tensor
    ) -> Tensor:
        related = groups[:, None] == gather_rows(groups)[None, :]
        inverse = self.temperature.inverse()
        nothing = online.image.new_zeros(0, online.image.shape[1])
        all_image = gather_rows_with_gradient(online.image)
        all_text = gather_rows_with_gradient(online.text)
        absent = untrusted & ~functional.one_hot(own, related.shape[1]).bool()
        rows = []
        for queries, keys in ((online.image, all_text), (online.text, all_image)):
            scores = pair_scores(queries, keys, nothing, inverse).masked_fill(absent, -math.inf)
            rows.append(contrast_rows(scores, own, related, self.config.siblings))
        return mean_across(rows[0] + rows[1], weight)

    @staticmethod
    def _codes(
        tokenizer: VisualTokenizer, model: DualEncoder, online: _Pass, batch: Batch
    ) -> Tensor:
        """Visual codes int64 (B, T) of the pictures, one a patch, of the same crop."""
        rows, columns = model.vision.grid_of(online.stem_map)
        side = tokenizer.pixels_per_token
        small = functional.interpolate(
            batch.slots["image"].float(), (rows * side, columns * side), mode="area"
        )
        return tokenizer.encode(small.round().to(torch.uint8)).flatten(1)

    def _masked_patches(
        self,
        head: PatchHead,
        codes_BT: Tensor,
        model: DualEncoder,
        online: _Pass,
        batch: Batch,
        weight_BK: Tensor,
    ) -> Tensor:
        patches = model.vision.patches_of_map(online.stem_map)
        rows, columns = model.vision.grid_of(online.stem_map)
        share = self.config.mask_patches
        mask = torch.cat(
            [
                block_mask(1, rows, columns, share=share, generator=_generator(seed))
                for seed in batch.seeds.tolist()
            ]
        ).to(patches.device)
        masked = torch.where(mask[..., None], head.mask_embedding.to(patches.dtype), patches)
        encoded = model.vision.encode_map(online.stem_map, patches=masked)
        outputs = encoded.tokens[:, -mask.shape[1] :]
        # With several captions a picture, the first one is told to the masked patches.
        partner = online.text.view(*weight_BK.shape, -1)[:, 0]
        if self.config.detach_condition:
            partner = partner.detach()
        row, _ = mask.nonzero(as_tuple=True)
        logits = head(outputs[mask], partner[row])
        values = functional.cross_entropy(logits.float(), codes_BT[mask], reduction="none")
        return mean_across(values, weight_BK[row, 0])

    def _masked_words(
        self,
        head: WordHead,
        words: Words,
        model: DualEncoder,
        online: _Pass,
        batch: Batch,
        weight: Tensor,
    ) -> Tensor:
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
                mask_id=words.mask,
                vocab_size=words.vocabulary,
                special_ids=words.special,
                generator=_generator(seed + 1),
            )
        encoded = model.text(masked_ids, real)
        partner = online.image.detach() if self.config.detach_condition else online.image
        row, _ = target.nonzero(as_tuple=True)
        table = model.text.token_embedding.weight
        logits = head(encoded.tokens[target], partner[row], table)
        values = functional.cross_entropy(logits.float(), ids[target], reduction="none")
        return mean_across(values, weight[row])


def _check(config: Config, tokenizer: VisualTokenizer | None, words: Words | None) -> None:
    problems = []
    if config.mvm > 0 and tokenizer is None:
        problems.append("mvm > 0 needs a visual tokenizer, got None (pass one or set mvm=0)")
    if config.mlm > 0 and words is None:
        problems.append("mlm > 0 needs the mask token's id, got None (pass it or set mlm=0)")
    if not any(weight > 0 for weight in loss_weights(config).values()):
        problems.append("all losses have weight 0, expected at least one above")
    range_ = (LEAST_TEMPERATURE, GREATEST_TEMPERATURE)
    if config.learn_temperature and not range_[0] <= config.temperature <= range_[1]:
        problems.append(f"temperature is {config.temperature}, one that trains is within {range_}")
    if problems:
        raise ConfigError("; ".join(problems), hint="change these settings")


def _own(state: nn.Module) -> State:
    if not isinstance(state, State):
        raise TypeError(f"got a {type(state).__name__}, expected the State of init_state")
    return state


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

    Returns:
        One objective.

    Raises:
        ConfigError: When settings contradict each other, or do not fit the model or a tokenizer
            that was fitted before.
        DataError: When a picture is broken that the visual tokenizer is fitted on.
        WeightsError: When the saved tokenizer that is named is absent or damaged.
    """
    if base.training is None:
        return Parts()
    tokenizer = None
    if config.mvm > 0:
        tokenizer = _visual_tokenizer(config, base.training, base.seed)
    words = words_of(base.model) if config.mlm > 0 else None
    # The heads start the same whatever was drawn before, in every process.
    with torch.random.fork_rng():
        torch.manual_seed(base.seed)
        objective = CotsObjective(config, base.model, tokenizer=tokenizer, words=words)
    return Parts(objective=((1.0, objective),), reads=("image", "text"))


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


def _visual_tokenizer(config: Config, training: Training, seed: int) -> VisualTokenizer:
    """The saved tokenizer of an earlier start of the run, or a new one fitted on its pictures."""
    from costream.encoders.visual_tokenizer import load_tokenizer_model, save_tokenizer

    if config.visual_tokenizer not in ("kmeans", "dvae"):
        return load_tokenizer_model(config.visual_tokenizer)
    directory = training.directory / "visual_tokenizer"
    if rank() == 0 and not (directory / "visual_tokenizer.json").exists():
        save_tokenizer(_fit_tokenizer(config, training, seed), directory)
    wait_for_all()
    tokenizer = load_tokenizer_model(directory)
    if tokenizer.vocab_size != config.visual_codes:
        raise ConfigError(
            f"{directory} holds a tokenizer of {tokenizer.vocab_size} codes, the settings say "
            f"visual_codes={config.visual_codes}",
            hint="remove it, or train into another directory",
        )
    return tokenizer


def _fit_tokenizer(config: Config, training: Training, seed: int) -> AnyTokenizer:
    from costream.encoders.visual_tokenizer import (
        DiscreteVaeConfig,
        KMeansTokenizer,
        fit_discrete_vae,
    )

    pictures = _small_pictures(training, seed)
    if config.visual_tokenizer == "kmeans":
        return KMeansTokenizer.fit(pictures, vocab_size=config.visual_codes, seed=seed)
    form = DiscreteVaeConfig(vocab_size=config.visual_codes)
    return fit_discrete_vae(
        pictures,
        form,
        steps=_TOKENIZER_STEPS,
        seed=seed,
        on_step=lambda step, _: training.tell(
            "Fitting the visual tokenizer", step + 1, _TOKENIZER_STEPS
        ),
    ).tokenizer


def _small_pictures(training: Training, seed: int, most: int = 2000, side_px: int = 64) -> Tensor:
    """Up to `most` training pictures, as small as a tokenizer sees them: uint8 (N, 3, 64, 64)."""
    settings = ImagePreprocess(size_px=side_px)
    order = np.random.default_rng(seed).permutation(len(training.data.samples))[:most]
    pixels = []
    for done, number in enumerate(order, start=1):
        training.tell("Reading pictures for the visual tokenizer", done, len(order))
        source = picture_of(training.data.samples[number])
        try:
            pixels.append(settings.pixels(open_image(source, smallest_side=side_px)))
        except DataError:
            continue  # the loader of the training counts and names broken pictures
    if not pixels:
        raise DataError(f"{training.data.name} has no picture that can be decoded")
    return torch.from_numpy(np.stack(pixels))


def claim(options: ClaimOptions) -> list[ClaimTable]:
    """The paper's claim as an experiment: what each interaction and the filter add, and the speed.

    Args:
        options: With `flickr8k` below its data root, photographs; else procedural scenes.

    Returns:
        Tables with a verdict for every comparison.
    """
    from costream.methods._cots.claim import reproduce, scale_of

    if options.data_root is None:
        data = None
    else:
        # An absent folder is named in the error of the reader.
        data = options.folder("flickr8k") or options.data_root / "flickr8k"
    return reproduce(data, options.out, options.say, scale=scale_of(options, data))
