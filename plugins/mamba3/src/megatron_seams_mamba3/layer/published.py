"""The weights of the authors' module, for this mixer at any tensor-parallel size."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_seams_mamba3.layer.layout import Layout

#: What is whole on every rank; all but the output projection is cut by rows.
_WHOLE = ("B_norm.weight", "C_norm.weight")


def from_published(
    weights: Mapping[str, Tensor], layout: "Layout", *, rank: int = 0
) -> dict[str, Tensor]:
    """Cut the weights of a ``mamba_ssm`` ``Mamba3`` to a state dict of one rank's mixer.

    On one rank they are the same tensors under the same names. ``in_proj`` has the parts z, x, B,
    C, dt, A, trap and angle, with the ranks of B and C outside of their groups.

    Args:
        weights: The module's state dict.
        layout: The mixer's (``options.layout``), with its tensor-parallel size.
        rank: The tensor-parallel rank.

    Returns:
        For ``load_state_dict``.

    Raises:
        ValueError: A name or a shape that a mixer of this layout does not have.
    """
    expected = shapes(layout, weights)
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = {
        name: (found.get(name), expected.get(name))
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    }
    if wrong:
        told = ", ".join(
            f"{name}: found {it}, expected {want}" for name, (it, want) in wrong.items()
        )
        message = f"these are not the weights of such a mixer: {told}"
        raise ValueError(message)

    def cut(name: str, weight: Tensor) -> Tensor:
        if name in _WHOLE:
            return weight
        if name == "out_proj.weight":
            return weight.chunk(layout.tp, dim=1)[rank]
        parts = list(layout.channels.values()) if name == "in_proj.weight" else [len(weight)]
        return torch.cat([part.chunk(layout.tp)[rank] for part in torch.split(weight, parts)])

    return {name: cut(name, weight) for name, weight in weights.items()}


def shapes(layout: "Layout", weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of the authors' module.

    Args:
        layout: The mixer's.
        weights: The module's state dict, of which the model's width is read, and whether the
            module is MIMO and normalises its heads.
    """
    H, P, R, N = layout.heads, layout.P, layout.R, layout.N
    width = weights["in_proj.weight"].shape[1] if "in_proj.weight" in weights else 0
    found: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (sum(layout.channels.values()), width),
        "out_proj.weight": (width, H * P),
        "dt_bias": (H,),
        "D": (H,),
        **dict.fromkeys(("B_bias", "C_bias"), (H, R, N)),
        **dict.fromkeys(_WHOLE, (N,)),
    }
    if R > 1 or "mimo_x" in weights:
        found |= dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), (H, R, P))
    if "norm.weight" in weights:
        found["norm.weight"] = (H * P,)
    return found
