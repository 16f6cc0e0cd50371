"""List the models that ship with costream, and say what else may stand for NAME_OR_DIR."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from costream.cli.options import AsJson
from costream.cli.output import say, say_json, say_table

_ELSE = """\
NAME_OR_DIR may also be
  a folder with config.json, model.safetensors and tokenizer.json, as `costream train` makes it;
  a folder of a CLIP or SigLIP model in the form of Hugging Face, or its name on the hub,
  such as openai/clip-vit-base-patch32 (needs: pip install 'costream[hub]')."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedModel:
    """A model inside the package.

    Attributes:
        name: What `--model` takes.
        dim: Dimensions of its vectors.
        size_bytes: Of its weights.
        weights_hash: Of its weights, as in the index and in reports.
        directory: Where it is.
        card: The model card, or None.
    """

    name: str
    dim: int
    size_bytes: int
    weights_hash: str
    directory: str
    card: str | None


def describe_models() -> list[ShippedModel]:
    """The models inside the package.

    Returns:
        Each model, by name.

    Raises:
        WeightsError: When a model is damaged.
    """
    from costream.encoders.locate import read_description, shipped_models

    described = []
    for name, directory in shipped_models().items():
        weights, card = directory / "model.safetensors", directory / "card.md"
        description = read_description(directory)
        described.append(
            ShippedModel(
                name=name,
                dim=int(description["config"]["dim"]),
                size_bytes=weights.stat().st_size,
                weights_hash=str(description["weights_hash"]),
                directory=str(directory),
                card=str(card) if card.exists() else None,
            )
        )
    return described


def run(as_json: AsJson = False) -> int:
    """List models."""
    models = describe_models()
    if as_json:
        say_json({"models": [asdict(model) for model in models], "other": _ELSE})
        return 0
    rows = [(m.name, f"{m.size_bytes / 1e6:.1f} MB", str(m.dim), m.card or "") for m in models]
    say_table(("model", "weights", "dimensions", "card"), rows, numbers=(1, 2))
    say("\n" + _ELSE)
    return 0
