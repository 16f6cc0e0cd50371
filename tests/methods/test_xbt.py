"""XBT: the maps and the flips by their formulas, the adapter's laws, and an old index asked anew."""

from __future__ import annotations

SMALL: dict[str, str] = {"old": "cots-mini", "map_steps": "2", "hidden": "16", "rank": "2"}
# Those after it must be made for its number of dimensions.
FIRST = True
