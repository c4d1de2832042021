"""Real ranks over gloo: every way of spreading the mixer gives one rank's numbers."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.cpu.ranks import on_ranks
from seam_support import plan, recipe

pytestmark = [pytest.mark.megatron, pytest.mark.release]

#: Read once on each rank, not for each of its runs.
here = functools.cache(read_environment)

VOCABULARY = 64
SETTINGS = {
    "vocab_size": VOCABULARY,
    "max_sequence_length": 64,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
IDS = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(3))
ROW = torch.randint(0, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(4))
BOUNDS = (0, 4, 20, 32)
SIZES = {"state-size": 8, "head-dim": 8, "chunk-size": 8}

TP = Parallelism(tensor_parallel=2)
SP = Parallelism(tensor_parallel=2, sequence_parallel=True)
PP = Parallelism(pipeline_parallel=2)


@attrs.frozen(kw_only=True)
class Run:
    """One model: its ``[seams.mamba3]``, its tokens, and where documents begin in a packed row."""

    options: dict[str, Any]
    ids: Tensor = IDS
    bounds: tuple[int, ...] | None = None


#: Each on one rank, and what the others are held to: one group for all heads, or one for each rank.
ONE_RANK = {
    "SISO": Run(options=SIZES),
    "MIMO": Run(options=SIZES | {"groups": 2, "mimo-rank": 3, "out-norm": True}),
    "packed": Run(options=SIZES | {"mimo-rank": 2}, ids=ROW, bounds=BOUNDS),
}
TWO_RANKS = {
    "SISO, TP 2": ("SISO", TP),
    "SISO, TP 2 with SP": ("SISO", SP),
    "SISO, PP 2": ("SISO", PP),
    "MIMO, TP 2": ("MIMO", TP),
    "MIMO, TP 2 with SP": ("MIMO", SP),
    "packed, TP 2 with SP": ("packed", SP),
}
#: Whose checkpoints are read again on one rank.
SAVED = ("SISO, TP 2", "MIMO, TP 2")


class Outcome(TypedDict):
    """A rank's logits [b, s, vocabulary], None before the last stage; its gradients by key."""

    logits: Tensor | None
    gradients: dict[str, tuple[tuple[int, ...], Tensor, tuple[int, ...]]]


def built(run: Run, spread: Parallelism, groups: Any) -> Any:
    """Build this rank's part of the model."""
    from megatron_seams.runtime.model.build import build_model

    pattern = "K*|K-" if spread.pipeline_parallel > 1 else "K*K-"
    asked = recipe(
        pattern,
        tokens={"K": "mamba3"},
        megatron=SETTINGS,
        seams={"mamba3": run.options},
        parallelism={key.replace("_", "-"): x for key, x in attrs.asdict(spread).items()},
        runtime={"packed-sequences": run.bounds is not None},
    )
    stage, stages = groups.pp.rank(), groups.pp.size()
    return build_model(
        plan(asked, here()), pre_process=stage == 0, post_process=stage == stages - 1
    )


def run_one(run: Run, spread: Parallelism, start: Path | None, save: Path | None) -> Outcome:
    """Build, load, run forward and backward under upstream's schedule, and save."""
    from megatron.core import dist_checkpointing
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.checkpoint import load_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(spread) as groups:
        model = built(run, spread, groups)
        if start is not None:
            load_checkpoint(model, start)
        else:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        seen: list[Tensor] = []
        packing = {}
        if run.bounds is not None:
            bounds = torch.tensor(run.bounds, dtype=torch.int32)
            longest = int(bounds.diff().max())
            packing["packed_seq_params"] = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=bounds,
                cu_seqlens_kv=bounds,
                max_seqlen_q=longest,
                max_seqlen_kv=longest,
            )

        def loss(logits: Tensor) -> tuple[Tensor, dict[str, Any]]:
            seen.append(logits.detach())
            # Summed over the tokens, so that the gradients are not small.
            flat = logits.flatten(0, 1), run.ids.flatten()
            return functional.cross_entropy(*flat, reduction="sum"), {}

        def forward(_: Any, module: Any) -> Any:
            positions = torch.arange(run.ids.shape[1]).expand_as(run.ids)
            logits = module(run.ids, positions, None, runtime_gather_output=True, **packing)
            return logits, loss

        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=run.ids.shape[1],
            micro_batch_size=len(run.ids),
            forward_only=False,
        )
        for parameter in model.parameters():
            if getattr(parameter, "sequence_parallel", False):
                dist.all_reduce(parameter.grad, group=groups.tp)
        if save is not None:
            dist_checkpointing.save(model.sharded_state_dict(), str(save))
        return Outcome(logits=seen[0] if seen else None, gradients=gradient_pieces(model))


def gradient_pieces(model: Any) -> dict[str, tuple[tuple[int, ...], Tensor, tuple[int, ...]]]:
    """The gradients by the keys and the places that the weights have in a checkpoint."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    for parameter in model.parameters():
        parameter.data = parameter.grad
    state = model.sharded_state_dict()
    apply_factories(state)
    return {
        part.key: (tuple(part.global_offset), part.data.detach().clone(), tuple(part.global_shape))
        for part in nested_values(state)
        if isinstance(part, ShardedTensor)
    }


def run_all(folder: Path, names: Iterable[str]) -> list[Outcome]:
    """Make every run on this rank, one after the other, from one rank's checkpoints."""
    return [
        run_one(
            ONE_RANK[TWO_RANKS[name][0]],
            TWO_RANKS[name][1],
            folder / TWO_RANKS[name][0],
            folder / name if name in SAVED else None,
        )
        for name in names
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, Outcome]:
    for name in ONE_RANK:
        (folder / name).mkdir()
    return {
        name: run_one(run, Parallelism(), None, folder / name) for name, run in ONE_RANK.items()
    }


@pytest.fixture(scope="module")
def two_ranks(one_rank: dict[str, Outcome], folder: Path) -> dict[str, list[Outcome]]:
    """Every run on two ranks, in one launch."""
    del one_rank  # only to be first: it leaves the checkpoints
    for name in SAVED:
        (folder / name).mkdir()
    by_rank = on_ranks(run_all, folder, list(TWO_RANKS), world_size=2)
    return dict(zip(TWO_RANKS, map(list, zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize("name", TWO_RANKS)
def test_outputs_and_gradients_are_one_ranks(
    name: str, one_rank: dict[str, Outcome], two_ranks: dict[str, list[Outcome]]
) -> None:
    expected = one_rank[TWO_RANKS[name][0]]
    logits = [it["logits"] for it in two_ranks[name] if it["logits"] is not None]
    assert logits
    for found in logits:
        assert_close(found, expected["logits"], "logits")
    seen = {key: torch.zeros(whole) for key, (_, _, whole) in expected["gradients"].items()}
    for outcome in two_ranks[name]:
        for key, (start, piece, whole) in outcome["gradients"].items():
            assert whole == expected["gradients"][key][2], key
            place = tuple(slice(at, at + n) for at, n in zip(start, piece.shape, strict=True))
            assert_close(piece, expected["gradients"][key][1][place], key)
            seen[key][place] = 1
    assert all(mask.all() for mask in seen.values())


@pytest.mark.parametrize("name", SAVED)
def test_the_checkpoint_is_read_on_one_rank(
    name: str, two_ranks: dict[str, list[Outcome]], folder: Path
) -> None:
    del two_ranks  # it leaves the checkpoint
    of = TWO_RANKS[name][0]
    first, second = (weights(ONE_RANK[of], folder / it) for it in (of, name))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def weights(run: Run, checkpoint: Path) -> dict[str, Tensor]:
    """Load a checkpoint on one rank."""
    from megatron_seams.runtime.checkpoint import load_checkpoint
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world() as groups:
        model = built(run, Parallelism(), groups)
        load_checkpoint(model, checkpoint)
        return {key: weight.detach() for key, weight in model.named_parameters()}


def assert_close(found: Tensor, expected: Tensor | None, what: str) -> None:
    assert expected is not None
    scale = max(1.0, expected.abs().max().item())
    worst = (found - expected).abs().max().item()
    assert worst <= 1e-5 * scale, f"{what}: {worst:.2e} apart at a scale of {scale:.2f}"
