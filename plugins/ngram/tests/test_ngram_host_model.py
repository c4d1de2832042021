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

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid, Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]

here = functools.cache(read_environment)

LENGTH, VOCABULARY, STEPS = 16, 64, 2
CLIP = 0.05
KEYS = tuple(
    f"{name}.tables.weight" for name in ("embedding.ngram_hash", "decoder.layers.0.engram")
)


def plan_of(place: str, pattern: str = "*-", **parallelism: Any) -> Plan:
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


class Run:
    """A model as upstream's trainer has it: wrapped, with its optimizer in its configuration."""

    def __init__(
        self,
        plan: Plan,
        *,
        start: Path | None = None,
        stage: dict[str, bool] | None = None,
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
        self.model = DistributedDataParallel(bare.config, DistributedDataParallelConfig(), bare)
        settings = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "clip_grad": CLIP}
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(**{**settings, **asked}), [self.model]
        )
        bare.config.grad_scale_func = self.optimizer.scale_loss
        self.norms: list[float] = []

    def steps(self, groups: Any, *, shift: int = 0, number: int = STEPS) -> list[float]:
        from megatron.core.distributed import finalize_model_grads

        losses = []
        for _ in range(number):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            for micro in range(2):
                ids, positions = batch(micro + shift)
                loss = self.model(ids, positions, None, labels=ids).mean()
                self.optimizer.scale_loss(loss).sum().backward()
                losses.append(float(loss.detach()))
            finalize_model_grads([self.model], pg_collection=groups)
            _, norm, _ = self.optimizer.step()
            self.norms.append(float(norm))
        return losses

    @property
    def tables(self) -> list[Any]:
        bare = self.model.module
        return [bare.embedding.ngram_hash.tables, bare.decoder.layers[0].engram.tables]

    def save(self, folder: Path) -> None:
        """As upstream saves."""
        from megatron.core import dist_checkpointing

        state = self.model.module.sharded_state_dict()
        optimizer = self.optimizer.sharded_state_dict(state)
        dist_checkpointing.save({**state, "optimizer": optimizer}, str(folder))

    def load(self, folder: Path) -> None:
        """As upstream loads."""
        from megatron.core import dist_checkpointing

        state = self.model.module.sharded_state_dict()
        optimizer = self.optimizer.sharded_state_dict(state, is_loading=True)
        loaded = dist_checkpointing.load({**state, "optimizer": optimizer}, str(folder))
        self.optimizer.load_state_dict(loaded.pop("optimizer"))
        self.model.module.load_state_dict(loaded, strict=False)


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
        "stages": on_stages(stages, folder / "device"),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Both places on one rank, on two tensor-parallel and on two data-parallel ranks."""
    from megatron_seams.runtime.checkpoint import save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    folder = tmp_path_factory.mktemp("host")
    for name in ("device", "host", "whole", "divided"):
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


def test_the_distributed_optimizer_and_one_of_another_model_are_refused(
    runs: dict[str, Any],
) -> None:
    for change, found in (
        (lambda run: setattr(run.optimizer.config, "use_distributed_optimizer", True), "divides"),
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
