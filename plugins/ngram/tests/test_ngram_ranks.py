"""Both seams on two real ranks, by every parallelism that divides them, and through checkpoints.

What a rank computes is held to what one process computes. Each launch does all that its ranks can.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from plugins.ngram.tests.ranked_runs import (
    CASES,
    EXPERTS,
    OVER_EXPERTS,
    by_batches,
    logits,
    model_of,
    norm_of,
    on_expert_ranks,
    on_stages,
    on_tensor_ranks,
    plan_of,
    stepped,
)
from torch import Tensor

from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The same on one rank, and what two ranks made of it."""
    from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    names = ("start", "stepped", "divided", "of one layer", "experts", "over experts")
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in names}
    found: dict[str, Any] = {}
    with cpu_world() as groups:
        for positions in ("rope", "learned_absolute"):
            model = model_of(plan_of(positions=positions))
            if positions == "rope":
                save_checkpoint(model.module, "a receipt", folders["start"])
            found[positions] = stepped(model, groups)
            if positions == "rope":
                save_checkpoint(model.module, "a receipt", folders["stepped"])
        model = model_of(plan_of(layers=(1,)))
        save_checkpoint(model.module, "a receipt", folders["of one layer"])
        found["of one layer"] = stepped(model, groups)
        model = model_of(plan_of(EXPERTS))
        save_checkpoint(model.module, "a receipt", folders["experts"])
        found["experts"] = by_batches(model, groups)
        found["experts"]["norm"] = norm_of(model)
        plans = {
            "experts": plan_of(EXPERTS, over=OVER_EXPERTS, **{"expert-parallel": 2}),
            "tensor": plan_of(over=OVER_EXPERTS, **{"tensor-parallel": 2}),
        }
        found["expert ranks"] = on_ranks(on_expert_ranks, plans, folders)
        model = model_of(plan_of(EXPERTS))
        with torch.no_grad():
            for name, weight in model.module.named_parameters():
                if name.endswith("tables.weight"):
                    weight.zero_()
        load_checkpoint(model.module, folders["over experts"])
        found["experts loaded"] = by_batches(model, groups)
        scattered = {"tensor-parallel": 2, "sequence-parallel": True}
        plans = {
            "tensor": plan_of(**{"tensor-parallel": 2}),
            "sequence": plan_of(**scattered),
            # With positions of its own the embedding is scattered only once they are added.
            "sequence, whole embedding": plan_of(positions="learned_absolute", **scattered),
        }
        found["ranks"] = on_ranks(on_tensor_ranks, plans, folders)
        model = model_of(plan_of())
        load_checkpoint(model.module, folders["divided"])
        found["loaded"] = logits(model)
        two = {"pipeline-parallel": 2}
        plans = {
            "rope": (plan_of("*-|*-", **two), folders["start"]),
            # Two chunks of the model on each rank, of which the first has one layer.
            "of one layer": (
                plan_of("*|-|*|-", layers=(1,), **two),
                folders["of one layer"],
            ),
        }
        found["stages"] = on_ranks(on_stages, plans)
        yield found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_tensor_ranks_compute_what_one_computes(single: dict[str, Any], case: str) -> None:
    alone, ranks = single[CASES[case]], [rank[case] for rank in single["ranks"]]
    for rank in ranks:
        close(rank["before"], alone["before"])
        close(rank["after"], alone["after"])
    assert not torch.allclose(alone["before"], alone["after"], rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_what_enters_the_decoder_is_the_same_bitwise(single: dict[str, Any], case: str) -> None:
    # Of every row one rank has the values and the others zeros, so that no sum is rounded.
    expected = single[CASES[case]]["embedded"]
    ranks = [rank[case]["embedded"] for rank in single["ranks"]]
    if case == "sequence":
        assert torch.equal(torch.cat(ranks), expected.transpose(0, 1))
    else:
        assert all(torch.equal(rank, expected) for rank in ranks)


@pytest.mark.parametrize("case", CASES)
def test_two_tensor_ranks_have_the_gradients_of_one(single: dict[str, Any], case: str) -> None:
    expected = single[CASES[case]]["gradients"]
    first, second = (rank[case]["gradients"] for rank in single["ranks"])
    assert len(expected) == 2 + 2 * 9
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        if name.endswith("tables.weight"):
            close(torch.cat([first[name], second[name]]), gradient)
        else:
            close(first[name], gradient)
            close(second[name], gradient)


def test_a_checkpoint_of_two_tensor_ranks_loads_on_one_and_the_other_way(
    single: dict[str, Any],
) -> None:
    ranks = single["ranks"]
    close(single["loaded"], ranks[0]["tensor"]["after"])
    for rank in ranks:
        close(rank["loaded"], single["rope"]["after"])


def test_expert_ranks_with_a_batch_each_compute_what_one_computes_of_both(
    single: dict[str, Any],
) -> None:
    alone, ranks = single["experts"], single["expert ranks"]
    for rank, expected in zip(ranks, alone["losses"], strict=True):
        close(rank["losses"][0], expected)
    assert not torch.allclose(*alone["losses"], rtol=1e-3)
    for name, gradient in alone["gradients"].items():
        assert gradient.abs().sum() > 0, name
        parts = [rank["gradients"][name] for rank in ranks]
        if name.endswith("tables.weight"):
            assert len(parts[0]) * 2 == len(gradient)
            close(torch.cat(parts), gradient)
            assert torch.equal(
                torch.cat([rank["rows"][name] for rank in ranks]), alone["rows"][name]
            )
        else:
            for part in parts:
                close(part, gradient)
    for rank in ranks:
        assert rank["norm"] == pytest.approx(alone["norm"], rel=1e-4)


def test_a_checkpoint_of_two_expert_ranks_loads_on_one(single: dict[str, Any]) -> None:
    loaded, alone = single["experts loaded"], single["experts"]
    for name, rows in alone["rows"].items():
        assert torch.equal(loaded["rows"][name], rows)
    for found, expected in zip(loaded["losses"], alone["losses"], strict=True):
        close(found, expected)


@pytest.mark.parametrize("case", ["rope", "of one layer"])
def test_stages_have_the_features_on_the_first_and_compute_what_one_computes(
    single: dict[str, Any], case: str
) -> None:
    first, last = (rank[case] for rank in single["stages"])
    on_the_first, *elsewhere = [*first["gradients"], *last["gradients"]]
    assert not any(elsewhere)
    assert first["losses"] == []
    close(last["losses"][0], single[case]["before"])
    for name, gradient in single[case]["gradients"].items():
        # The schedule takes the mean over the micro-batches, which the step above does not.
        close(on_the_first[name] * 2, gradient)
