"""Runs of models with tables on the device or the host under Megatron's optimizer."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from plugins.ngram.tests.tiny import LENGTH, SETTINGS, VOCABULARY, planned
from torch import Tensor
from torch.overrides import TorchFunctionMode

from megatron_seams.planning.plan import Plan

STEPS, MICROS = 2, 2
CLIP = 0.05
#: Formats of a distributed optimizer's checkpoints: that which moves between layouts, and the one
#: that upstream's trainer saves unless it is told otherwise.
MOVABLE, BUCKETS = "fully_reshardable", "dp_reshardable"
EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
#: What is saved, what goes on from it, and the format.
RESUMED = (
    ("device", "host", MOVABLE),
    ("host", "device", MOVABLE),
    ("host", "host", MOVABLE),
    ("host", "host", BUCKETS),
)
KEYS = tuple(
    f"{name}.tables.weight" for name in ("embedding.ngram_hash", "decoder.layers.0.engram")
)


def plan_of(place: str, pattern: str = "*-", *, bf16: bool = False, **parallelism: Any) -> Plan:
    return planned(table_of(place, pattern, bf16=bf16, **parallelism))


def plan_of_all_updated() -> Plan:
    """On the host, where each step updates all rows."""
    table = table_of("host")
    for options in table["seams"].values():
        options["host-updates"] = "all"
    return planned(table)


def table_of(
    place: str, pattern: str = "*-", *, bf16: bool = False, **parallelism: Any
) -> dict[str, Any]:
    """A recipe with the tables of both seams on the device or on the host."""
    sizes = {"heads": 2, "table-rows": 100, "width": 4, "tables": place}
    return {
        "schema": 1,
        "model": {"name": "tiny", "pattern": pattern},
        "features": [{"family": "ngram"}, {"family": "engram", "layers": [1]}],
        "seams": {"ngram_hash": sizes, "engram": sizes},
        "megatron": {
            **SETTINGS,
            **({"bf16": True} if bf16 else {}),
            **(EXPERTS if "E" in pattern else {}),
        },
        "parallelism": parallelism,
    }


def clipped(parameters: Any, max_norm: float, total_norm: float, **_: Any) -> None:
    """Upstream's own, which wants gradients of CUDA's type."""
    scale = max_norm / (total_norm + 1e-6)
    for one in parameters:
        if one.grad is not None and scale < 1:
            one.grad.mul_(scale)


@contextlib.contextmanager
def clipping_on_a_cpu() -> Iterator[None]:
    from megatron.core.optimizer import optimizer

    # 0.19 asks for the stream that it is on, and on a CPU does nothing with the answer.
    with (
        patch.object(optimizer, "clip_grad_by_total_norm_fp32", clipped),
        patch.object(torch.cuda, "current_stream", return_value=None),
    ):
        yield


@contextlib.contextmanager
def loading_torchs_adam() -> Iterator[None]:
    """A distributed optimizer that loads torch's Adam, whose steps are one state more than others'.

    Upstream has Transformer Engine's or Apex's there, without which a load fails for the step.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    name = "_set_main_param_and_optimizer_states"
    own = getattr(DistributedOptimizer, name)

    def loaded(self: Any, parameter: Any, tensors: dict[str, Any]) -> None:
        own(self, parameter, {**tensors, "step": None})

    with patch.object(DistributedOptimizer, name, loaded), torch.no_grad():
        yield


class TypesOfCuda(TorchFunctionMode):
    """Lets tensors on a CPU say that CUDA has them: a distributed optimizer insists on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        asked = func is torch.Tensor.type and isinstance(found, str)
        return found.replace("torch.", "torch.cuda.") if asked else found


class Run:
    """A model as upstream's trainer has it: wrapped, with its optimizer in its configuration.

    ``kind`` is the format of a distributed optimizer's checkpoints; None for another optimizer.
    Parameters with ``expert`` in their names get an optimizer of their own, as upstream has it for
    those of experts.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        start: Path | None = None,
        stage: dict[str, bool] | None = None,
        kind: str | None = None,
        expert: str | None = None,
        **asked: Any,
    ) -> None:
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
        )
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

        from megatron_seams.runtime.checkpoint import load_checkpoint
        from megatron_seams.runtime.model.build import build_model

        torch.manual_seed(7)
        bare = build_model(plan, **(stage or {}))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, weight in sorted(bare.named_parameters()):
                if name.endswith(("projection", "value", "taps")):
                    weight.normal_(std=0.5, generator=generator)
        if start is not None:
            load_checkpoint(bare, start)
        for name, weight in bare.named_parameters():
            if expert is not None and expert in name:
                weight.allreduce = False
        if bare.config.bf16:
            bare.bfloat16()
            asked["bf16"] = True
        divided = {"use_distributed_optimizer": kind is not None}
        self.model = DistributedDataParallel(
            bare.config, DistributedDataParallelConfig(**divided), bare
        )
        settings = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "clip_grad": CLIP}
        self.kind = kind
        with TypesOfCuda():
            self.optimizer = get_megatron_optimizer(
                OptimizerConfig(**{**settings, **divided, **asked}), [self.model]
            )
        bare.config.grad_scale_func = self.optimizer.scale_loss
        self.norms: list[float] = []

    def steps(
        self,
        groups: Any,
        *,
        shift: int = 0,
        number: int = STEPS,
        micros: int = MICROS,
        part: float = 1.0,
    ) -> list[float]:
        from megatron.core.distributed import finalize_model_grads

        losses = []
        for _ in range(number):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            for micro in range(micros):
                ids, positions = batch(micro + shift)
                loss = self.model(ids, positions, None, labels=ids).mean()
                self.optimizer.scale_loss(part * loss).sum().backward()
                losses.append(float(loss.detach()))
            finalize_model_grads([self.model], pg_collection=groups)
            _, norm, _ = self.optimizer.step()
            self.norms.append(float(norm))
        return losses

    @property
    def tables(self) -> list[Any]:
        bare = self.model.module
        return [bare.embedding.ngram_hash.tables, bare.decoder.layers[0].engram.tables]

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of upstream's trainer for an optimizer's state."""
        kind = {} if self.kind is None else {"distrib_optim_sharding_type": self.kind}
        return {"metadata": {**kind, "chained_optim_avoid_prefix": True}}

    def save(self, folder: Path) -> None:
        """As upstream saves."""
        from megatron.core import dist_checkpointing

        state = self.model.module.sharded_state_dict()
        optimizer = self.optimizer.sharded_state_dict(state, **self.asked)
        dist_checkpointing.save({**state, "optimizer": optimizer}, str(folder))

    def load(self, folder: Path) -> None:
        """As upstream loads."""
        from megatron.core import dist_checkpointing

        state = self.model.module.sharded_state_dict()
        if self.kind is not None:
            for one in self.optimizer.chained_optimizers:
                one._init_optimizer_states_with_dummy_values()
        optimizer = self.optimizer.sharded_state_dict(state, is_loading=True, **self.asked)
        loaded = dist_checkpointing.load({**state, "optimizer": optimizer}, str(folder))
        with loading_torchs_adam():
            self.optimizer.load_state_dict(loaded.pop("optimizer"))
        for one in self.optimizer.chained_optimizers:
            for states in one.optimizer.state.values():
                # Upstream gives all of them one tensor, in which torch's Adam counts each.
                states["step"] = states["step"].clone()
        self.model.module.load_state_dict(loaded, strict=False)


def whole(tables: Any) -> Tensor:
    """The rows in float32, which for resident ones of 16 bits the optimizer has."""
    weight = tables.weight
    return getattr(weight, "main_param", weight).detach().view_as(weight)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
    return ids, torch.arange(LENGTH).expand(2, -1)


@contextlib.contextmanager
def resumed_from(folder: Path, **asked: bool) -> Iterator[None]:
    """Upstream's trainer, which was told to load ``folder``."""
    from megatron_seams_ngram.host import state

    arguments = SimpleNamespace(**{"finetune": False, "no_load_optim": False, **asked})
    with (
        patch.object(state, "trainers_arguments", lambda: arguments),
        patch.object(state, "resumed", lambda _: folder),
    ):
        yield


def on_data_ranks(plans: dict[str, Plan], kind: str | None = None) -> dict[str, Any]:
    """Two replicas, or two parts of the experts, each with batches of its own."""
    from megatron_seams.runtime.cpu.world import cpu_world

    found = {}
    with cpu_world(plans["host"].parallelism) as groups, clipping_on_a_cpu():
        for place, plan in plans.items():
            run = Run(plan, kind=kind)
            losses = run.steps(groups, shift=2 * groups.dp.rank())
            weights = [one.weight.detach().clone() for one in run.tables]
            found[place] = {"losses": losses, "norms": run.norms, "weights": weights}
    return found


def on_divided_ranks(plans: dict[str, Plan], folder: Path) -> dict[str, Any]:
    """Two replicas with a distributed optimizer; saved, and gone on with in every way."""
    from torch.distributed.checkpoint.api import CheckpointException

    from megatron_seams.runtime.cpu.world import cpu_world

    found: dict[str, Any] = {}
    with cpu_world(plans["host"].parallelism) as groups, clipping_on_a_cpu():
        shift = MICROS * groups.dp.rank()
        for place, plan in plans.items():
            run = Run(plan, kind=MOVABLE)
            losses = run.steps(groups, shift=shift)
            weights = [one.weight.detach().clone() for one in run.tables]
            for kind in (MOVABLE, BUCKETS):
                run.kind = kind
                run.save(folder / f"{place}, {kind}")
            later = run.steps(groups, shift=shift)
            divided = run.optimizer.chained_optimizers[0].model_param_group_index_map
            found[place] = {
                "losses": losses,
                "norms": run.norms,
                "weights": weights,
                "beside": [len(divided.keys() & set(one.beside)) for one in run.tables]
                if place == "host"
                else [],
                "later": later,
                "later weights": [one.weight.detach() for one in run.tables],
            }
        for saved, place, kind in RESUMED:
            run, start = Run(plans[place], kind=kind), folder / f"{saved}, {kind}"
            run.load(start)
            with resumed_from(start):
                later = run.steps(groups, shift=shift)
            weights = [one.weight.detach() for one in run.tables]
            steps = run.tables[0].host.rule.steps if place == "host" else 2 * STEPS
            found[f"{saved} to {place}, {kind}"] = later, run.norms, weights, steps
        for saved, place in (("host", "device"), ("device", "host")):
            run = Run(plans[place], kind=BUCKETS)
            try:
                run.load(folder / f"{saved}, {BUCKETS}")
            except CheckpointException as error:
                found[f"{saved} to {place}, refused"] = str(error)
    return found


def on_tensor_ranks(plans: dict[str, Plan], folder: Path) -> dict[str, Any]:
    """Two parts of every table; saved, and what one rank saved loaded."""
    from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    found: dict[str, Any] = {}
    with cpu_world(plans["host"].parallelism) as groups, clipping_on_a_cpu():
        for (place, plan), kind in itertools.product(plans.items(), (MOVABLE, None)):
            run = Run(plan, kind=kind)
            losses = run.steps(groups)
            weights = [one.weight.detach().clone() for one in run.tables]
            which = found if kind is None else found.setdefault("distributed", {})
            which[place] = {"losses": losses, "norms": run.norms, "weights": weights}
        save_checkpoint(run.model.module, "a receipt", folder / "divided")
        resumed = Run(plans["host"])
        resumed.load(folder / "device")
        with resumed_from(folder / "device"):
            found["later"] = resumed.steps(groups)
        load_checkpoint(run.model.module, folder / "whole")
        found["loaded"] = [one.weight.detach().clone() for one in run.tables]
    return found


def on_stages(plan: Plan, folder: Path, kind: str | None) -> tuple[float, int]:
    """Two pipeline stages, of which the first has the tables, step together."""
    from megatron.core.distributed import finalize_model_grads

    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(plan.parallelism) as groups, clipping_on_a_cpu():
        first = groups.pp.rank() == 0
        run = Run(plan, stage={"pre_process": first, "post_process": not first}, kind=kind)
        run.model.module.sharded_state_dict()
        ids, positions = batch(0)
        for _ in range(2):
            run.model.zero_grad_buffer()
            run.optimizer.zero_grad()
            if not first:
                run.model.module.set_input_tensor(torch.ones(LENGTH, 2, 32))
            labels = None if first else ids
            with resumed_from(folder):
                run.model(ids if first else None, positions, None, labels=labels).mean().backward()
            finalize_model_grads([run.model], pg_collection=groups)
            _, norm, _ = run.optimizer.step()
        return float(norm), run.tables[0].host.rule.steps if first else 0


def on_two_ranks(
    tensor: dict[str, Plan],
    data: dict[str, Plan],
    experts: dict[str, Plan],
    stages: Plan,
    folder: Path,
) -> dict[str, Any]:
    """All that two ranks do, in one launch."""
    return {
        "tensor": on_tensor_ranks(tensor, folder),
        "data": on_data_ranks(data),
        "experts": on_data_ranks(experts, MOVABLE),
        "divided": on_divided_ranks(data, folder),
        "stages": [on_stages(stages, folder / "device", kind) for kind in (None, MOVABLE)],
    }
