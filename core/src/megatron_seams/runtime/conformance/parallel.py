"""The parallel capabilities that a seam claims, each compared with the same model on one rank.

The model of one process saves its weights and what it computes. Each parallel model loads those
weights through its own sharded state, computes the same, takes one step and computes again: a
collective that is missing, in the forward or in the backward pass, shows in the one or the other.
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor, nn

from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint
from megatron_seams.runtime.conformance.models import (
    LENGTH,
    ROWS,
    STEP,
    build,
    losses_of,
    tokens,
)
from megatron_seams.runtime.conformance.subject import OVER_RANKS, Subject
from megatron_seams.runtime.conformance.widths import Widths, widths_under_fp8
from megatron_seams.runtime.cpu.ranks import RankFailed, on_ranks
from megatron_seams.runtime.cpu.world import cuda_on_cpu, gloo_world
from megatron_seams.runtime.model.next_token import NextTokenBatch

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

#: The losses of one and of two ranks differ by the order in which floats are added.
TOLERANCE: Final = 2e-4

#: How long a rank waits for its peer.
_PATIENCE: Final = datetime.timedelta(minutes=3)

_CHECKPOINT, _FOUND = "checkpoint", "found.pt"

#: The capability that divides a seam's linears, whose widths are then looked at on each rank.
_DIVIDES: Final = "tensor-parallel"


@attrs.frozen(kw_only=True)
class Spread:
    """The findings on two ranks.

    Attributes:
        differs: Capability -> what differs from one process, None where nothing does.
        widths: The seam's linears under fp8, on a rank of two tensor-parallel ones.
    """

    differs: Mapping[str, str | None]
    widths: Widths = attrs.field(factory=Widths)


def over_ranks(subject: Subject, groups: "ProcessGroupCollection", folder: Path) -> Spread:
    """Compare every parallel capability that the seam claims with one process.

    Args:
        subject: The seam.
        groups: Of this process alone.
        folder: Empty, for checkpoints.

    Returns:
        What differs by capability. One launch serves them all; where it fails, each gets a launch
        of its own, so that none hides another.
    """
    claimed = {name: subject.plan(name) for name in OVER_RANKS if subject.supports(name)}
    for name, plan in claimed.items():
        reference = folder / layers_of(plan)
        if not reference.exists():
            (reference / _CHECKPOINT).mkdir(parents=True)
            _reference(subject.alone(name), groups, reference)
    if not claimed:
        return Spread(differs={})
    try:
        return _launched(claimed, folder)
    except RankFailed:
        found = Spread(differs={})
        for name, plan in claimed.items():
            try:
                one = _launched({name: plan}, folder)
            except RankFailed as error:
                one = Spread(differs={name: str(error)})
            widths = one.widths if name == _DIVIDES else found.widths
            found = Spread(differs={**found.differs, **one.differs}, widths=widths)
        return found


def _launched(plans: Mapping[str, Plan], folder: Path) -> Spread:
    ranks = on_ranks(spread, plans, folder, world_size=2)
    return Spread(
        differs={
            name: next((it for rank in ranks if (it := rank.differs[name]) is not None), None)
            for name in plans
        },
        widths=next((rank.widths for rank in ranks if rank.widths.odd), Widths()),
    )


def _reference(plan: Plan, groups: "ProcessGroupCollection", folder: Path) -> None:
    """Save the weights of one process, and what it computes."""
    model = build(plan, groups)
    save_checkpoint(model, "", folder / _CHECKPOINT)
    before = losses_of(model, tokens())
    torch.autograd.backward(before.mean())
    step(model)
    with torch.no_grad():
        after = losses_of(model, tokens())
    torch.save({"before": before.detach(), "after": after}, folder / _FOUND)


def layers_of(plan: Plan) -> str:
    """The layers of a plan: the key of its model on one rank."""
    return plan.pattern.tokens


def step(model: nn.Module) -> None:
    """One step of plain descent."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(STEP * parameter.grad)
                parameter.grad = None


def spread(plans: Mapping[str, Plan], folder: Path) -> Spread:
    """On a rank: what differs from one process by capability, and the widths of linears."""
    found = {name: _compared(name, plan, folder / layers_of(plan)) for name, plan in plans.items()}
    return Spread(
        differs={name: differs for name, (differs, _) in found.items()},
        widths=found[_DIVIDES][1] if _DIVIDES in found else Widths(),
    )


def _compared(capability: str, plan: Plan, folder: Path) -> tuple[str | None, Widths]:
    widths = Widths()
    expected = torch.load(folder / _FOUND, weights_only=True)
    with cuda_on_cpu(), gloo_world(plan.parallelism, timeout=_PATIENCE) as groups:
        stage = groups.pp.rank()
        last = stage == groups.pp.size() - 1
        model = build(plan, groups, pre_process=stage == 0, post_process=last)
        load_checkpoint(model, folder / _CHECKPOINT)
        before = _computed(model, plan, groups)
        _complete(model, groups)
        if capability == _DIVIDES:
            widths = widths_under_fp8(model, plan, groups)
        if plan.parallelism.expert_parallel > 1:
            # Each rank's experts have seen both ranks' tokens: their gradients are another batch's.
            differs = _differs("the losses", before, expected["before"]) if last else None
            return differs, widths
        step(model)
        after = _computed(model, plan, groups)
        if not last:
            return None, widths
        differs = _differs("the losses", before, _own(expected["before"], groups)) or _differs(
            "the losses after one step", after, _own(expected["after"], groups)
        )
        return differs, widths


def _computed(model: nn.Module, plan: Plan, groups: "ProcessGroupCollection") -> Tensor | None:
    """Forward and backward over the whole model; the losses [b, s] on the last stage."""
    row = tokens()
    if plan.parallelism.pipeline_parallel == 1:
        losses = _of_piece(model, row, groups)
        torch.autograd.backward(losses.mean())
        return losses.detach()
    seen: list[Tensor] = []
    last = groups.pp.rank() == groups.pp.size() - 1

    def forward(_: Any, module: nn.Module) -> tuple[Tensor, Any]:
        batch = NextTokenBatch.of(row)
        out = module(**(batch.training() if last else batch.forward()))

        def loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(losses.detach())
            return losses.mean(), {}

        return out, loss

    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=None,
        model=model,
        num_microbatches=1,
        seq_length=LENGTH,
        micro_batch_size=ROWS,
        forward_only=False,
    )
    return seen[0] if seen else None


def _own(whole: Tensor, groups: "ProcessGroupCollection") -> Tensor:
    """A context-parallel rank's pieces of [b, s, ...]: the i-th from the front and from the back.

    Upstream's ``get_batch_on_this_cp_rank`` deals them so, to level causal attention.
    """
    size, rank = groups.cp.size(), groups.cp.rank()
    pieces = whole.chunk(2 * size, dim=1)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]], dim=1) if size > 1 else whole


def _of_piece(model: nn.Module, row: Tensor, groups: "ProcessGroupCollection") -> Tensor:
    """The loss of each token that this rank has of ``row`` [b, s + 1]."""
    whole = NextTokenBatch.of(row)
    piece = NextTokenBatch(
        inputs=_own(whole.inputs, groups),
        labels=_own(whole.labels, groups),
        positions=_own(whole.positions, groups),
    )
    losses: Tensor = model(**piece.training())
    return losses


def _complete(model: nn.Module, groups: "ProcessGroupCollection") -> None:
    """Complete the gradients, as upstream does between the backward pass and the step.

    ``finalize_model_grads`` wants its own wrapper around the model; these are its two rules: a
    parameter marked ``sequence_parallel`` saw a piece of the sequence on each rank, and every
    parameter saw a piece of it on each context-parallel rank.
    """
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if getattr(parameter, "sequence_parallel", False):
            dist.all_reduce(parameter.grad, group=groups.tp)
        if groups.cp.size() > 1:
            dist.all_reduce(parameter.grad, group=groups.cp)
            parameter.grad /= groups.cp.size()


def _differs(what: str, found: Tensor | None, expected: Tensor) -> str | None:
    if found is None or found.shape != expected.shape:
        return f"{what} are {None if found is None else list(found.shape)}"
    worst = float((found - expected).abs().max())
    if worst <= TOLERANCE:
        return None
    return f"{what} differ from one rank's by up to {worst:.2g} (at most {TOLERANCE:.0e})"
