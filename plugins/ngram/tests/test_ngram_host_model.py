"""Tables on the host under Megatron's data parallelism and its own optimizer, and checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins.ngram.tests.host_runs import (
    BUCKETS,
    CLIP,
    KEYS,
    MICROS,
    MOVABLE,
    RESUMED,
    STEPS,
    Run,
    batch,
    clipping_on_a_cpu,
    on_two_ranks,
    plan_of,
    plan_of_all_updated,
    resumed_from,
    whole,
)

from megatron_seams.errors import FeatureInvalid, Refusal
from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]


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
        for place, plan in (("device", plan_of("device")), ("all", plan_of_all_updated())):
            run = Run(plan, weight_decay=0.1)
            # Other rows in every step.
            losses = [run.steps(groups, shift=MICROS * at, number=1) for at in (0, 1, 2, 0)]
            weights = [one.weight.detach().clone() for one in run.tables]
            found[f"{place}, changing"] = [losses, run.norms, weights]
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
            {place: plan_of(place, pattern="*E", **{"expert-parallel": 2}) for place in places},
            plan_of("host", pattern="*|-", **stages),
            folder,
        )
        found |= {name: [rank[name] for rank in ranks] for name in ranks[0]}
        found["groups"] = groups
        yield found


#: What a checkpoint of rows on the host has beside that of resident ones.
STEPS_SAVED = {f"optimizer.state.host_step.{key}": "int64 [1]" for key in KEYS}


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


def test_where_all_rows_are_updated_a_run_is_that_of_resident_tables_whatever_its_batches(
    runs: dict[str, Any],
) -> None:
    (losses, norms, weights), expected = runs["all, changing"], runs["device, changing"]
    close(losses, expected[0])
    close(norms, expected[1])
    for one, other in zip(weights, expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("spread", ["tensor", "data", "experts"])
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
        assert torch.equal(one, other) == (spread != "tensor")
    if spread == "tensor":
        for run in (first["host"], first["distributed"]["host"], first["distributed"]["device"]):
            close(run["losses"], runs["host, losses"])
            close(run["norms"], runs["host, norms"])
        for rank in (first, second):
            for found, expected in zip(
                rank["distributed"]["host"]["weights"], rank["host"]["weights"], strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-6)


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
    } | STEPS_SAVED
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
    norms = []
    for (norm, steps), (other, _) in zip(*runs["stages"], strict=True):
        assert norm == other > 0
        assert steps == STEPS + 2  # with those of the checkpoint that the first stage alone reads
        norms.append(norm)
    close(norms[0], norms[1])  # of a distributed optimizer


def test_a_checkpoint_of_one_rank_loads_on_two_and_the_other_way(runs: dict[str, Any]) -> None:
    from megatron_seams.runtime.checkpoint import load_checkpoint

    whole = runs["host, weights"]
    parts = [rank["loaded"] for rank in runs["tensor"]]
    for expected, *found in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(found), expected)
    for rank in runs["tensor"]:  # with a part of one rank's moments
        close(rank["later"], runs["device, later losses"])
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
    } | STEPS_SAVED
    assert {f"optimizer.state.exp_avg.{key}" for key in KEYS} < host.keys()


def test_nothing_of_the_rows_is_common_state_which_stages_without_tables_would_have_otherwise(
    runs: dict[str, Any],
) -> None:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    run = runs["host"]
    state = run.optimizer.sharded_state_dict(run.model.module.sharded_state_dict(), **run.asked)
    of_rows = list(nested_values(state["host_rows"]))
    assert len(of_rows) == 3 * len(KEYS)
    assert all(isinstance(one, ShardedTensor) for one in of_rows)


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


@pytest.mark.parametrize("folder", ["whole", "older"])
def test_a_checkpoint_without_moments_leaves_the_rows_without(
    runs: dict[str, Any], caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    run = Run(plan_of("host"), start=runs["folder"] / "whole")
    for one, expected in zip(run.tables, runs["host, weights"], strict=True):
        assert torch.equal(one.weight, expected)
    with resumed_from(runs["folder"] / folder):  # the older one was never a distributed one
        run.steps(runs["groups"], number=1)
    assert run.tables[0].host.rule.steps == 1
    said = [it.getMessage() for it in caplog.records if "no moments of the rows" in it.getMessage()]
    assert [text.split()[-5] for text in said] == ["ngram_hash,", "engram,"]


def test_of_a_release_no_moments_are_read_as_upstream_reads_no_optimizer(
    runs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = tmp_path / "release"
    release.symlink_to(runs["folder"] / "host")
    run = Run(plan_of("host"))
    run.load(release)
    with resumed_from(release):
        run.steps(runs["groups"], number=1)
    assert run.tables[0].host.rule.steps == 1
    assert "no moments of the rows" not in caplog.text


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


def test_a_layer_wise_optimizer_one_of_another_model_and_a_rate_of_its_own_are_refused(
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
        (lambda run: setattr(run.optimizer.config, "decoupled_lr", 0.1), "--decoupled-lr"),
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
