"""The rotation of B and C, by which a state of real numbers acts as one of complex numbers."""

import torch
from torch import Tensor


def rotated(x: Tensor, angle: Tensor, *, halves: bool) -> Tensor:
    """Turn pairs of channels: (u, v) becomes (u cos θ - v sin θ, u sin θ + v cos θ).

    The authors' two kernels pair channels differently, and so do the weights that they trained.

    Args:
        x: [..., N].
        angle: [..., A] in radians, 2 · A ≤ N; the pairs after the A-th stay as they are.
        halves: False for channels (2 i, 2 i + 1), the order without MIMO; True for (i, i + N / 2),
            the order with it.

    Returns:
        [..., N].
    """
    cos, sin, count = angle.cos(), angle.sin(), angle.shape[-1]
    if halves:
        first, second = x.chunk(2, dim=-1)
        u, v = first[..., :count], second[..., :count]
        rest = first[..., count:], second[..., count:]
        return torch.cat([u * cos - v * sin, rest[0], u * sin + v * cos, rest[1]], dim=-1)
    pairs = torch.unflatten(x[..., : 2 * count], -1, (count, 2))
    u, v = pairs.unbind(-1)
    turned = torch.stack([u * cos - v * sin, u * sin + v * cos], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., 2 * count :]], dim=-1)
