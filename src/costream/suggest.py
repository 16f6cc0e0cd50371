"""What to say of a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A suggestion to put behind a message about an unknown name.

    Args:
        word: What was written.
        names: What could have been meant.

    Returns:
        ` (did you mean 'x'?)`, with a space before it, or nothing when no name is near.

    Example:
        >>> did_you_mean("bach_size", ["rate", "batch_size"])
        " (did you mean 'batch_size'?)"
        >>> did_you_mean("zzz", ["rate"])
        ''
    """
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
