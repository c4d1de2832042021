"""A curve in block characters, for a terminal."""

import itertools
import math
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def plot(values: Sequence[float], *, width: int = 60, height: int = 8) -> str:
    """Draw values from left to right, on a scale from the least to the greatest.

    Infinity and NaN, as of a training that diverges, have no place on the scale and are left blank.

    Args:
        values: At least one; more than ``width`` are averaged in equal groups.
        width: Columns of the curve, without its labels.
        height: Lines.

    Returns:
        ``height`` lines, the first and last with the scale's ends.
    """
    columns = _averaged(values, width)
    finite = [value for value in columns if math.isfinite(value)] or [math.nan]
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    # The least value keeps one eighth, so that the curve does not seem to end there.
    levels = [
        1 + round((value - low) / span * (8 * height - 1)) if math.isfinite(value) else 0
        for value in columns
    ]
    lines = []
    for row in reversed(range(height)):
        label = {height - 1: f"{high:7.3f}", 0: f"{low:7.3f}"}.get(row, " " * 7)
        cells = "".join(_EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels)
        lines.append(f"{label} |{cells}")
    return "\n".join(lines)


def _averaged(values: Sequence[float], width: int) -> list[float]:
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
