"""Tables on the host under Megatron's data parallelism and its own optimizer, and checkpoints."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid, Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]

here = functools.cache(read_environment)

LENGTH, VOCABULARY, STEPS, MICROS = 16, 64, 2, 2
CLIP = 0.05
#: Formats of a distributed optimizer's checkpoints: that which moves between layouts, and the one
#: that upstream's trainer saves unless it is told otherwise.
MOVABLE, BUCKETS = "fully_reshardable", "dp_reshardable"
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
    sizes = {"heads": 2, "table-rows": 100, "width": 4, "tables": place}
    table = {
        "schema": 1,
        "model": {"name": "tiny", "pattern": pattern},
        "features": [{"family": "ngram"}, {"family": "engram", "layers": [1]}],
        "seams": {"ngram_hash": sizes, "engram": sizes},
        "megatron": {
            "vocab_size": VOCABULARY,
            "max_sequence_length": LENGTH,
            "hidden_size": 32,
            "ffn_hidden_size": 64,
            "num_attention_heads": 4,
            "position_embedding_type": "rope",
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            **({"bf16": True} if bf16 else {}),
        },
        "parallelism": parallelism,
    }
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return resolve(recipe, here())


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


def on_data_ranks(plans: dict[str, Plan]) -> dict[str, Any]:
    """Two replicas, each with batches of its own."""
    from megatron_seams.runtime.cpu.world import cpu_world

    found = {}
    with cpu_world(plans["host"].parallelism) as groups, clipping_on_a_cpu():
        for place, plan in plans.items():
            run = Run(plan)
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

    found = {}
    with cpu_world(plans["host"].parallelism) as groups, clipping_on_a_cpu():
        for place, plan in plans.items():
            run = Run(plan)
            losses = run.steps(groups)
            weights = [one.weight.detach().clone() for one in run.tables]
            found[place] = {"losses": losses, "norms": run.norms, "weights": weights}
        save_checkpoint(run.model.module, "a receipt", folder / "divided")
        load_checkpoint(run.model.module, folder / "whole")
        found["loaded"] = [one.weight.detach().clone() for one in run.tables]
    return found


def on_stages(plan: Plan, folder: Path) -> tuple[float, int]:
    """Two pipeline stages, of which the first has the tables, step together."""
    from megatron.core.distributed import finalize_model_grads

    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(plan.parallelism) as groups, clipping_on_a_cpu():
        first = groups.pp.rank() == 0
        run = Run(plan, stage={"pre_process": first, "post_process": not first})
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
    tensor: dict[str, Plan], data: dict[str, Plan], stages: Plan, folder: Path
) -> dict[str, Any]:
    """All that two ranks do, in one launch."""
    return {
        "tensor": on_tensor_ranks(tensor, folder),
        "data": on_data_ranks(data),
        "divided": on_divided_ranks(data, folder),
        "stages": on_stages(stages, folder / "device"),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Both places on one rank, on two tensor-parallel and on two data-parallel ranks."""
    from megatron_seams.runtime.checkpoint import save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    folder = tmp_path_factory.mktemp("host")
    divided = [f"{place}, {kind}" for place in ("device", "host") for kind in (MOVABLE, BUCKETS)]
    for name in ("device", "host", "whole", "divided", *divided):
        (folder / name).mkdir()
    found: dict[str, Any] = {"folder": folder}
    with cpu_world() as groups, clipping_on_a_cpu():
        for place in ("device", "host"):
            run = found[place] = Run(plan_of(place))
            found[f"{place}, losses"] = run.steps(groups)
            run.save(folder / place)
            if place == "host":
                save_checkpoint(run.model.module, "a receipt", folder / "whole")
            found[f"{place}, weights"] = [one.weight.detach().clone() for one in run.tables]
            found[f"{place}, norms"] = list(run.norms)
            found[f"{place}, later losses"] = run.steps(groups)
        both = Run(plan_of("device"))
        found["both, losses"] = both.steps(groups, micros=2 * MICROS, part=0.5)
        found["both, weights"] = [one.weight.detach().clone() for one in both.tables]
        found["both"] = both
        places = ("device", "host")
        tensor, stages = {"tensor-parallel": 2}, {"pipeline-parallel": 2}
        ranks = on_ranks(
            on_two_ranks,
            {place: plan_of(place, **tensor) for place in places},
            {place: plan_of(place) for place in places},
            plan_of("host", pattern="*|-", **stages),
            folder,
        )
        found |= {name: [rank[name] for rank in ranks] for name in ranks[0]}
        found["groups"] = groups
        yield found


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=2e-6, atol=1e-6
    )


def test_under_megatrons_optimizer_losses_norms_and_rows_are_those_of_resident_tables(
    runs: dict[str, Any],
) -> None:
    # Every step has the same rows, so that Adam and its sparse form are the same rule.
    close(runs["host, losses"], runs["device, losses"])
    close(runs["host, norms"], runs["device, norms"])
    assert min(runs["host, norms"]) > CLIP
    for found, expected in zip(runs["host, weights"], runs["device, weights"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    assert runs["host, losses"][-1] < runs["host, losses"][0]


@pytest.mark.parametrize("spread", ["tensor", "data"])
def test_two_ranks_step_rows_on_the_host_as_they_step_resident_ones(
    runs: dict[str, Any], spread: str
) -> None:
    first, second = runs[spread]
    for rank in (first, second):
        close(rank["host"]["losses"], rank["device"]["losses"])
        close(rank["host"]["norms"], rank["device"]["norms"])
        for found, expected in zip(rank["host"]["weights"], rank["device"]["weights"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-6)
    for one, other in zip(first["host"]["weights"], second["host"]["weights"], strict=True):
        assert torch.equal(one, other) == (spread == "data")
    if spread == "tensor":
        close(first["host"]["losses"], runs["host, losses"])
        close(first["host"]["norms"], runs["host, norms"])


def test_a_distributed_optimizer_steps_rows_on_the_host_as_it_steps_resident_ones(
    runs: dict[str, Any],
) -> None:
    ranks = runs["divided"]
    for rank in ranks:
        host, device = rank["host"], rank["device"]
        for name in ("losses", "norms", "later"):
            close(host[name], device[name])
        for name in ("weights", "later weights"):
            for found, expected in zip(host[name], device[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-6)
        # One rank with the batches of both: the norm of the rows counts once, and not for each.
        close(host["norms"][:STEPS], runs["both"].norms[:STEPS])
        assert min(host["norms"]) > CLIP
        for found, expected in zip(host["weights"], runs["both, weights"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-6)
    one, other = (rank["host"]["losses"] for rank in ranks)
    by_step = [torch.tensor(losses).view(STEPS, MICROS) for losses in (one, other)]
    close(torch.cat(by_step, 1).flatten(), runs["both, losses"])
    for one, other in zip(*(rank["host"]["later weights"] for rank in ranks), strict=True):
        assert torch.equal(one, other)
    # It has slices of parameters, and of some of those beside the rows none on one rank or other.
    assert 0 in [slices for rank in ranks for slices in rank["host"]["beside"]]


@pytest.mark.parametrize(("saved", "resumed", "kind"), RESUMED)
def test_a_run_with_a_distributed_optimizer_goes_on_from_a_checkpoint(
    runs: dict[str, Any], saved: str, resumed: str, kind: str
) -> None:
    for rank in runs["divided"]:
        losses, norms, weights, steps = rank[f"{saved} to {resumed}, {kind}"]
        expected = rank["device"]
        close(losses, expected["later"])
        close(norms, expected["norms"][-STEPS:])
        for one, other in zip(weights, expected["later weights"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=5e-6)
        assert steps == 2 * STEPS


def test_a_distributed_optimizers_checkpoint_has_the_keys_of_resident_tables_where_it_can(
    runs: dict[str, Any],
) -> None:
    from megatron_seams.runtime.checkpoint import saved_entries

    resident, host = (
        saved_entries(runs["folder"] / f"{place}, {MOVABLE}") for place in ("device", "host")
    )
    assert {key: str(entry) for key, entry in host.items()} == {
        key: str(entry) for key, entry in resident.items()
    }
    assert {f"optimizer.state.param.{key}" for key in KEYS} < host.keys()
    # Buckets of parameters, with the rows among them or without: upstream refuses the other's.
    for rank in runs["divided"]:
        for change in ("host to device", "device to host"):
            assert "Global shape mismatch" in rank[f"{change}, refused"]


def test_one_rank_goes_on_from_a_distributed_optimizers_checkpoint_of_two(
    runs: dict[str, Any],
) -> None:
    both = {"micros": 2 * MICROS, "part": 0.5}
    expected = runs["both"].steps(runs["groups"], **both)
    for kind in (MOVABLE, BUCKETS):
        folder, run = runs["folder"] / f"host, {kind}", Run(plan_of("host"), kind=kind)
        run.load(folder)
        with resumed_from(folder):
            close(run.steps(runs["groups"], **both), expected)
        close(run.norms, runs["both"].norms[-STEPS:])


@pytest.mark.parametrize("kind", [None, MOVABLE])
@pytest.mark.parametrize(("saved", "resumed"), [("device", "host"), ("host", "device")])
def test_in_bf16_a_checkpoint_has_the_rows_in_float32(
    runs: dict[str, Any], tmp_path: Path, saved: str, resumed: str, kind: str | None
) -> None:
    first, second = (Run(plan_of(place, bf16=True), kind=kind) for place in (saved, resumed))
    first.steps(runs["groups"])
    first.save(tmp_path)
    expected = [whole(one).clone() for one in first.tables]
    second.load(tmp_path)
    for group in second.optimizer.param_groups:
        group["lr"] = 0.0  # so that the step leaves the rows as they were loaded
    with resumed_from(tmp_path):
        losses = second.steps(runs["groups"], number=1)
    assert losses == first.steps(runs["groups"], number=1)
    for one, rows in zip(second.tables, expected, strict=True):
        assert torch.equal(whole(one), rows)
        assert not torch.equal(rows, rows.bfloat16().float())


@pytest.mark.parametrize("kind", [None, MOVABLE])
def test_a_run_with_several_optimizers_goes_on_from_its_checkpoint(
    runs: dict[str, Any], tmp_path: Path, kind: str | None
) -> None:
    first, second = (Run(plan_of("host"), kind=kind, expert="mlp") for _ in range(2))
    first.steps(runs["groups"])
    assert len(first.optimizer.chained_optimizers) == 3
    first.save(tmp_path)
    second.load(tmp_path)
    with resumed_from(tmp_path):
        losses = second.steps(runs["groups"])
    close(losses, first.steps(runs["groups"]))
    close(second.norms, first.norms[-STEPS:])
    assert second.tables[0].host.rule.steps == 2 * STEPS


def test_a_stage_without_tables_waits_for_none_of_the_other(runs: dict[str, Any]) -> None:
    (norm, steps), (other, _) = runs["stages"]
    assert norm == other > 0
    assert steps == STEPS + 2  # with those of the checkpoint that the first stage alone reads


def test_a_checkpoint_of_one_rank_loads_on_two_and_the_other_way(runs: dict[str, Any]) -> None:
    from megatron_seams.runtime.checkpoint import load_checkpoint

    whole = runs["host, weights"]
    parts = [rank["loaded"] for rank in runs["tensor"]]
    for expected, *found in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(found), expected)
    run = Run(plan_of("device"))
    load_checkpoint(run.model.module, runs["folder"] / "divided")
    halves = [rank["host"]["weights"] for rank in runs["tensor"]]
    for one, *expected in zip(run.tables, *halves, strict=True):
        assert torch.equal(one.weight, torch.cat(expected))


def test_a_checkpoint_has_the_keys_of_one_with_resident_tables_moments_included(
    runs: dict[str, Any],
) -> None:
    from megatron_seams.runtime.checkpoint import saved_entries

    resident, host = (saved_entries(runs["folder"] / place) for place in ("device", "host"))
    assert {key: str(entry) for key, entry in host.items()} == {
        key: str(entry) for key, entry in resident.items()
    }
    assert {f"optimizer.state.exp_avg.{key}" for key in KEYS} < host.keys()


@pytest.mark.parametrize(
    ("saved", "resumed"), [("device", "host"), ("host", "device"), ("host", "host")]
)
def test_a_run_goes_on_from_a_checkpoint_of_either(
    runs: dict[str, Any], saved: str, resumed: str
) -> None:
    folder, run = runs["folder"] / saved, Run(plan_of(resumed))
    run.load(folder)
    with resumed_from(folder):
        losses = run.steps(runs["groups"])
    expected = runs["device"]
    close(losses, runs["device, later losses"])
    close(run.norms, expected.norms[-STEPS:])
    for one, other in zip(run.tables, expected.tables, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=5e-6)
    if resumed == "host":
        assert run.tables[0].host.rule.steps == 2 * STEPS


def test_a_run_that_is_told_to_leave_the_moments_out_starts_without(runs: dict[str, Any]) -> None:
    run = Run(plan_of("host"))
    run.load(runs["folder"] / "host")
    with resumed_from(runs["folder"] / "host", no_load_optim=True):
        run.steps(runs["groups"], number=1)
    assert run.tables[0].host.rule.steps == 1


def test_a_checkpoint_without_moments_leaves_the_rows_without(runs: dict[str, Any]) -> None:
    run = Run(plan_of("host"), start=runs["folder"] / "whole")
    for one, expected in zip(run.tables, runs["host, weights"], strict=True):
        assert torch.equal(one.weight, expected)
    with resumed_from(runs["folder"] / "whole"):
        run.steps(runs["groups"], number=1)
    assert run.tables[0].host.rule.steps == 1


def test_the_chain_is_upstreams_to_everybody_else(runs: dict[str, Any]) -> None:
    resident, host = runs["device"].optimizer, runs["host"].optimizer
    assert len(host.chained_optimizers) == len(resident.chained_optimizers) + 1
    # A schedule sets the rates of the native groups, and the rows follow those.
    assert len(host.param_groups) == len(resident.param_groups)
    # Upstream's precision-aware optimizer clips this one in place of the other.
    assert all(norm.decoupled_grad is norm.grad for norm in host.chained_optimizers[-1]._norms)
    table = runs["host"].tables[0]
    before = table.weight.clone()
    for rate in (0.0, 0.004):
        for group in host.param_groups:
            group["lr"] = rate
        runs["host"].steps(runs["groups"], number=1)
        assert torch.equal(table.weight, before) == (rate == 0)
    before = table.weight.clone()
    runs["host"].model.zero_grad_buffer()
    ids, positions = batch(0)
    runs["host"].model(ids, positions, None, labels=ids).mean().backward()
    assert table.host.has_gradient
    host.zero_grad()
    assert not table.host.has_gradient
    host.step()
    assert torch.equal(table.weight, before)


def test_a_layer_wise_optimizer_and_one_of_another_model_are_refused(
    runs: dict[str, Any],
) -> None:
    from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer

    for change, found in (
        (
            lambda run: setattr(run.optimizer, "__class__", LayerWiseDistributedOptimizer),
            "LayerWiseDistributedOptimizer",
        ),
        (
            lambda run: setattr(
                run.model.config, "grad_scale_func", runs["device"].optimizer.scale_loss
            ),
            "does not have the model's parameters",
        ),
    ):
        run = Run(plan_of("host"))
        change(run)
        with pytest.raises(FeatureInvalid, match=found) as caught:
            run.steps(runs["groups"], number=1)
        assert caught.value.code == "SEAM-R11"
        assert caught.value.key == "seams.ngram_hash.tables"


def test_megatrons_optimizer_that_nobody_named_is_refused_before_it_steps_without_the_rows() -> (
    None
):
    from megatron_seams.runtime.model.build import build_model

    model = build_model(plan_of("host"))
    ids, positions = batch(0)
    model(ids, positions, None, labels=ids).mean().backward()
    # As mixed precision has it: the optimizer steps copies.
    projection = model.embedding.ngram_hash.projection
    projection.main_param = torch.zeros(1, requires_grad=True)
    projection.main_param.grad = torch.zeros(1)
    with pytest.raises(FeatureInvalid, match=r"grad_scale_func"):
        torch.optim.Adam([projection.main_param]).step()


def test_an_unknown_place_is_refused_by_the_planner() -> None:
    with pytest.raises(Refusal, match="tables"):
        plan_of("disk")
