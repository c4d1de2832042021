"""Upstream's sparse attention without the kernel that its older releases insist on.

Before 0.19 the indexer always rotates queries and keys by a Hadamard matrix, in a package that runs
on CUDA alone. Here the same product is taken in torch, in the place where upstream keeps the
kernel that it found, so that models with such layers can be built and trained on a CPU.
"""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_seams.runtime.backends.local import LocalBackend

#: Small sizes, and no rotation where the release can do without.
SIZES = {
    "dsa_indexer_n_heads": 2,
    "dsa_indexer_head_dim": 16,
    "dsa_indexer_topk": 4,
    "dsa_indexer_loss_coeff": 0.01,
}


def sparse_settings() -> dict[str, Any]:
    """The settings of sparse attention for this Megatron; bfloat16 where the kernel insists."""
    from megatron_seams.runtime import compat

    return SIZES | (dict(compat.NO_ROTATION) or {"bf16": True})


def sparse_backend(monkeypatch: pytest.MonkeyPatch) -> "LocalBackend":
    """The local backend, for a machine that has the kernel."""
    from megatron.core.transformer.experimental_attention_variant import dsa

    from megatron_seams.runtime.backends.local import LocalBackend

    class WithKernel(LocalBackend):
        def why_not(self, family: str) -> str | None:
            return None if family == "dsa" else super().why_not(family)

    monkeypatch.setattr(dsa, "hadamard_transform", hadamard_transform)
    return WithKernel()


def hadamard_transform(x: "Tensor", scale: float = 1.0) -> "Tensor":
    """The product with the Hadamard matrix of Sylvester's order.

    Args:
        x: [..., n], n a power of two.
        scale: A factor on the result.
    """
    import torch

    matrix = torch.ones(1, 1)
    while matrix.size(0) < x.size(-1):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (x.float() @ matrix * scale).to(x.dtype)
