"""A module of either seam with its tables on the device or the host, and its training."""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from megatron_seams.hookspecs import FeatureContext
from megatron_seams_ngram.engram.options import Options as EngramOptions
from megatron_seams_ngram.engram.plugin import engram_feature
from megatron_seams_ngram.hash.options import Options as HashOptions
from megatron_seams_ngram.hash.plugin import ngram_feature
from megatron_seams_ngram.host.ahead import fetch_ahead

VOCABULARY, HIDDEN, EOD = 64, 8, 1
SIZES = {"table_rows": 100, "width": 4, "heads": 2}
SEAMS = ["ngram_hash", "engram"]


def build(seam: str, place: str, *, config: dict[str, Any] | None = None, **options: Any) -> Any:
    dtype = options.pop("dtype", torch.float32)
    context = FeatureContext(
        config=SimpleNamespace(
            hidden_size=HIDDEN,
            embedding_init_method_std=0.02,
            init_method_std=0.02,
            layernorm_epsilon=1e-5,
            params_dtype=dtype,
            use_cpu_initialization=True,
            sequence_parallel=False,
            **(config or {}),
        ),
        options=(HashOptions if seam == "ngram_hash" else EngramOptions)(
            **{**SIZES, **options}, tables=place
        ),
        megatron_version=Version("0.19.2"),
        backend=SimpleNamespace(),
        pg_collection=SimpleNamespace(tp=None, dp_cp=None),
        placement="embedding" if seam == "ngram_hash" else "residual",
        vocab_size=VOCABULARY,
        packed_sequences=False,
        layer_number=2,
        layer_numbers=(2,),
    )
    module = (ngram_feature if seam == "ngram_hash" else engram_feature)(context)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if not name.startswith("tables."):
                weight.normal_(std=0.3, generator=generator)
    return module


def batch(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, shape or (2, 9), generator=generator)


def called(module: Any, ids: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    if "key" not in dict(module.named_parameters()):
        found: Tensor = module(ids, cu_seqlens=cu_seqlens)
        return found
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(ids.shape[1], ids.shape[0], HIDDEN, generator=generator)
    remembered: Tensor = module(hidden, ids, cu_seqlens=cu_seqlens)
    return remembered


def loss_of(module: Any, ids: Tensor) -> Tensor:
    return (called(module, ids).float() - 1).square().sum()


Step = Callable[[], Any]
Rule = Callable[[Any], tuple[torch.optim.Optimizer, Step]]


def descent(module: Any) -> tuple[torch.optim.Optimizer, Step]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    return optimizer, optimizer.step


def adam(module: Any) -> tuple[torch.optim.Optimizer, Step]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    return optimizer, optimizer.step


def sparse_adam(module: Any) -> tuple[torch.optim.Optimizer, Step]:
    """Adam, and for resident tables torch's sparse form of it."""
    table = module.tables.weight
    dense = torch.optim.Adam([one for one in module.parameters() if one is not table], lr=0.05)
    sparse = torch.optim.SparseAdam([table], lr=0.05)
    steps = itertools.count(1)

    def step() -> None:
        dense.step()
        # Adam adds epsilon to a root that is corrected by this, and torch's sparse form does not.
        sparse.param_groups[0]["eps"] = 1e-8 * math.sqrt(1 - 0.999 ** next(steps))
        (rows,) = torch.nonzero(table.grad.any(dim=1), as_tuple=True)
        table.grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0),
            table.grad[rows],
            table.shape,
            is_coalesced=True,
            check_invariants=True,
        )
        sparse.step()
        table.grad = None

    return dense, step


def trained(
    module: Any, rule: Rule, batches: list[list[Tensor]], *, ahead: str = "nothing"
) -> list[float]:
    """The loss of each micro-batch; each list is a step."""
    optimizer, step = rule(module)
    losses = []
    flat = [ids for micro in batches for ids in micro]
    for micro in batches:
        optimizer.zero_grad()
        for ids in micro:
            if ahead != "nothing":
                at = next(i for i, one in enumerate(flat) if one is ids) + 1
                following = flat[at] if at < len(flat) else ids
                if ahead == "right":
                    fetch_ahead(module, following)
                elif ahead == "a copy":
                    fetch_ahead(module, following.clone())
                else:
                    fetch_ahead(module, batch(99))
            loss = loss_of(module, ids)
            loss.backward()
            losses.append(float(loss.detach()))
        step()
    return losses
