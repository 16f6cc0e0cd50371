"""Fetching a model from the Hugging Face hub, only ever because a user named it. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from costream.errors import WeightsError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

# Weights as safetensors and what describes them; never code, never pickles.
_WANTED: Final = [
    "*.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "spiece.model",
    "README.md",
]
# Models from before safetensors have them in a pull request that the hub's own program opened.
_CONVERTER: Final = "SFconvertbot"
_CONVERSION: Final = "Adding `safetensors` variant of this model"


def fetch_from_hub(name: str) -> Path:
    """The local directory of a hub model, fetched when it is not in the cache yet.

    `HF_HUB_OFFLINE=1` and the other settings of `huggingface_hub` apply. Where the model's own
    files are pickles only, the safetensors are taken that the hub's converter offers beside them.

    Args:
        name: `owner/name`.

    Returns:
        The directory in the hub's cache.

    Raises:
        WeightsError: When the package is not installed, the hub does not answer, or has no such
            model.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise WeightsError(
            f"{name!r} is the name of a hub model, and huggingface_hub is not installed",
            hint="pip install 'costream[hub]', or give a directory",
        ) from None

    def fetch(revision: str | None) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))

    own = _asking(name, lambda: fetch(None))
    if _has_weights(own):
        return own
    converted = _converted_in_cache(own)
    if converted is not None:
        return converted
    revision = _asking(name, lambda: _conversion(HfApi(), name))
    if revision is None:
        raise WeightsError(
            f"the hub has no safetensors of {name!r}, only other forms of weights",
            hint='choose another model, or convert it: python -c "from transformers import '
            f"AutoModel; AutoModel.from_pretrained({name!r}).save_pretrained('DIR')\", copy its "
            "tokenizer.json and preprocessor_config.json to DIR, and give DIR",
        )
    return _asking(name, lambda: fetch(revision))


def _asking(name: str, ask: Callable[[], T]) -> T:
    """Do what needs the hub; whatever fails on the way becomes one kind of error."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return ask()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot get {name!r} from the hub: {reason}",
            hint="check the name, the connection and, for a model that is not public, "
            "`hf auth login`; or copy the model's directory and give its path",
        ) from error


def _has_weights(directory: Path) -> bool:
    return any(directory.glob("model*.safetensors"))


def _converted_in_cache(snapshot: Path) -> Path | None:
    """The converted form of a snapshot that was fetched before, so that it works offline too."""
    model = snapshot.parent.parent
    for reference in sorted((model / "refs" / "refs" / "pr").glob("*")):
        converted = model / "snapshots" / reference.read_text().strip()
        if _has_weights(converted):
            return converted
    return None


def _conversion(api: HfApi, name: str) -> str | None:
    """The revision that holds the converter's files; None when it made none."""
    offers = api.get_repo_discussions(
        name, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
    )
    for offer in offers:
        # Anybody may open a pull request of this title; only the converter's own counts.
        if offer.author == _CONVERTER and offer.title == _CONVERSION:
            return offer.git_reference
    return None
