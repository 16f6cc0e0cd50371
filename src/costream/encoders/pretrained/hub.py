"""Fetching a model from the Hugging Face hub, only ever because a user named it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from costream.errors import WeightsError

# Weights as safetensors and what describes them; never code, never pickles.
_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.md"]


def fetch_from_hub(name: str) -> Path:
    """The local directory of a hub model, fetched when it is not in the cache yet.

    `HF_HUB_OFFLINE=1` and the other settings of `huggingface_hub` apply.

    Args:
        name: `owner/name`.

    Raises:
        WeightsError: When the package is not installed, the hub does not answer, or has no such
            model.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise WeightsError(
            f"{name!r} is the name of a hub model, and huggingface_hub is not installed",
            hint="pip install 'costream[hub]', or give a directory",
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot get {name!r} from the hub: {reason}",
            hint="check the name and the connection, or give a directory with the model",
        ) from error
