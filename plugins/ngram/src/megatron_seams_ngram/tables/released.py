"""The multipliers of Engram as released: numpy's own generator, bounded by the ids."""

from typing import Final

#: What the released form adds to the seed for each layer.
_STEP: Final = 10007
_MOST: Final = 2**63 - 1


def released_multipliers(*, seed: int, layer_id: int, ids: int, positions: int) -> tuple[int, ...]:
    """Draw a layer's multipliers, one for each position of the longest n-gram.

    All orders share them. They are odd, and so small that no product with an id exceeds a signed 64
    bit integer. numpy may change what its generators draw; a checkpoint has the numbers themselves.

    Args:
        seed: 0 or more.
        layer_id: The released model's own number of the layer.
        ids: How many compressed ids there are; every id is below it.
        positions: The highest order.
    """
    import numpy as np  # here, so that an audit needs none

    bound = max(1, _MOST // ids // 2)
    generator = np.random.default_rng(seed + _STEP * layer_id)
    drawn = generator.integers(0, bound, size=positions, dtype=np.int64)
    return tuple(2 * int(number) + 1 for number in drawn)
