"""Running Megatron on a CPU: torch's CUDA calls mapped to the CPU, and process groups over gloo.

No Megatron symbol is patched. Upstream asks torch for ``torch.cuda.current_device()`` or for a
tensor on ``device="cuda"`` in its rotary embeddings, its pipeline schedules and its checkpointing;
inside :func:`cuda_on_cpu` torch answers with the CPU.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from torch.distributed.rendezvous import rendezvous
from torch.overrides import TorchFunctionMode

from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.agreement.meeting import refuse_half_launched
from megatron_seams.runtime.compat import forget_logged_losses

_CPU = torch.device("cpu")


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites the device of torch calls that ask for CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with the CPU wherever it was called with a CUDA device."""
        del types
        kwargs = dict(kwargs or {})
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(_CPU if _is_cuda(argument) else argument for argument in args)
        return func(*args, **kwargs)


def _is_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


_IN_PLACE_OF: dict[str, Callable[..., Any]] = {
    "current_device": lambda: _CPU,
    "is_available": lambda: False,
    "synchronize": lambda *_: None,
}


@contextlib.contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Let torch answer every CUDA request with the CPU, for the time of the block.

    It changes ``torch.cuda`` for the whole process, so all threads are inside it or none is. On a
    machine with a GPU it keeps the run off that GPU.
    """
    originals = {name: getattr(torch.cuda, name) for name in _IN_PLACE_OF}
    try:
        for name, replacement in _IN_PLACE_OF.items():
            setattr(torch.cuda, name, replacement)
        # Upstream's fused functions are compiled by torch on their first call, which takes longer
        # on a CPU than a toy run, and needs a C++ compiler.
        with _CudaMeansCpu(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)


@contextlib.contextmanager
def cpu_world(
    parallelism: Parallelism | None = None, *, seed: int = 1234
) -> Iterator[ProcessGroupCollection]:
    """:func:`cuda_on_cpu` and :func:`gloo_world` together: what a run on a CPU needs."""
    with cuda_on_cpu(), gloo_world(parallelism, seed=seed) as pg_collection:
        yield pg_collection


@contextlib.contextmanager
def gloo_world(
    parallelism: Parallelism | None = None,
    *,
    seed: int = 1234,
    virtual_pipeline_parallel: int | None = None,
    timeout: datetime.timedelta = datetime.timedelta(minutes=10),
) -> Iterator[ProcessGroupCollection]:
    """Megatron's process groups over gloo and its random number tracker, for the time of the block.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) the rank joins the launcher's world, and
    may join it again after it has left, with all its peers; otherwise the process is a world of its
    own, without a port. torch's CPU generator is seeded, equally on every rank because Megatron
    cuts its initial CPU weights from one full tensor, and put back at the end. Upstream's
    records of auxiliary losses, which have the groups and the size of a model of this world, are
    emptied at the end.

    Args:
        parallelism: How the ranks are divided; one of everything by default.
        seed: For the initial weights and for dropout.
        virtual_pipeline_parallel: Model chunks in each pipeline rank.
        timeout: After which a collective without its peers fails.

    Yields:
        The process groups, as Megatron's modules want them.

    Raises:
        LaunchInvalid: The launcher's variables are half there, or make no sense.
        RuntimeError: The process is in a process group already, or the world's size does not
            divide into ``parallelism`` (upstream's own check).
    """
    if dist.is_initialized():
        message = "this process is in a torch process group already; leave it first"
        raise RuntimeError(message)
    spread = parallelism or Parallelism()
    _join(timeout)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=spread.tensor_parallel,
            pipeline_model_parallel_size=spread.pipeline_parallel,
            virtual_pipeline_model_parallel_size=virtual_pipeline_parallel,
            context_parallel_size=spread.context_parallel,
            expert_model_parallel_size=spread.expert_parallel,
        )
        # The tracker for inference is the one that does not keep CUDA generator states.
        initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        forget_logged_losses()
        initialize_rng_tracker(force_reset=True)
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _join(timeout: datetime.timedelta) -> None:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        refuse_half_launched(os.environ)
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        # A launcher's store outlives a process group, and a second group that found the addresses
        # of the first one's peers there would wait for them for ever.
        turn = store.add(f"joined by {rank}", 1)
        own = dist.PrefixStore(f"world {turn}", store)  # type: ignore[attr-defined]  # as HashStore
        dist.init_process_group(
            "gloo", store=own, rank=rank, world_size=world_size, timeout=timeout
        )
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in torch's __all__
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
