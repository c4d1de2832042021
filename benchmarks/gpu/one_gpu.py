"""Parts of the benchmarks on a GPU: Megatron in one process on one GPU, plans, timed work."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch

#: No Apex and no fused attention is wanted of the machine.
PLAIN: Final[Mapping[str, Any]] = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
    "gradient_accumulation_fusion": False,
    "attention_backend": "unfused",
    "bf16": True,
    "params_dtype": "bfloat16",
}


def start() -> None:
    """Make Megatron's process groups, of this process alone."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    torch.cuda.set_device(0)
    parallel_state.initialize_model_parallel()
    seed()


def seed() -> None:
    """Let the next model draw the same initial weights as any other of its shape."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.manual_seed(1)
    model_parallel_cuda_manual_seed(1234)


def plan_of(pattern: str, megatron: Mapping[str, Any], **tables: Any) -> Any:
    """Resolve a recipe in the dialect ``nam``.

    Args:
        pattern: The layers.
        megatron: Its ``[megatron]``.
        **tables: Its other tables: ``families``, ``features``, ``seams``.
    """
    import megatron_seams as ms
    from megatron_seams.base.structure import structure
    from megatron_seams.recipes.recipe import Recipe

    recipe, faults = structure(
        Recipe,
        {
            "schema": 1,
            "model": {"name": pattern, "pattern": pattern, "dialect": "nam"},
            "megatron": dict(megatron),
            **tables,
        },
    )
    assert recipe is not None, faults
    return ms.resolve(recipe, ms.read_environment())


def tokens(batch: int, length: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids, and positions, [b, s]."""
    ids = torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(1))
    return ids.cuda(), torch.arange(length, device="cuda").expand(batch, -1)


def step(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> None:
    """Take one forward and backward pass, with gradients made anew."""
    model.zero_grad(set_to_none=True)
    model(ids, positions, None, labels=ids).float().mean().backward()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Collect no garbage meanwhile: a collection holds the host for tens of milliseconds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def looped(work: Callable[[], object], times: int) -> float:
    """Milliseconds on the device of one of several calls in a row, the host's pace included."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


def milliseconds(work: Callable[[], None]) -> float:
    """The time on the device from the first kernel of ``work`` to the end of its last.

    It is behind a kernel that idles while the host launches, until the first layer that waits.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(10_000_000)  # cycles: 5 ms
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
