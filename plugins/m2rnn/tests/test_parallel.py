"""Real ranks over gloo: every way of spreading the mixer gives one rank's numbers."""

import functools
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.cpu.ranks import on_ranks
from megatron_seams_m2rnn.layer.context_parallel import token_order
from seam_support import plan, recipe

pytestmark = pytest.mark.megatron

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


@attrs.frozen(kw_only=True)
class Run:
    """One model on some ranks.

    Attributes:
        pattern: Its layers.
        options: ``[seams.m2rnn]``.
        start: The checkpoint that it starts from; None for the initial weights, moved a little.
        spread: Over how many ranks.
        ids: [b, s], the tokens.
        bounds: Where documents begin, of a packed row.
        save: Where its checkpoint is left.
    """

    pattern: str
    options: dict[str, Any]
    ids: Tensor
    start: Path | None = None
    spread: Parallelism = attrs.field(factory=Parallelism)
    bounds: tuple[int, ...] | None = None
    save: Path | None = None

    def plan(self) -> Plan:
        """Resolve it over the seams that are installed and the Megatron in hand."""
        return plan(
            recipe(
                self.pattern,
                tokens={"R": "recurrent"},
                megatron=SETTINGS,
                seams={"m2rnn": self.options},
                parallelism={
                    name.replace("_", "-"): value
                    for name, value in attrs.asdict(self.spread).items()
                },
                runtime={"packed-sequences": self.bounds is not None},
            ),
            here(),
        )


class Piece(TypedDict):
    """A rank's part of a tensor: where it begins in the whole one, and the whole one's shape."""

    start: tuple[int, ...]
    data: Tensor
    whole: tuple[int, ...]


class Outcome(TypedDict):
    """What a rank saw; plain values, which travel between processes.

    ``logits`` is [b, s, vocabulary] of this rank's ``tokens`` of the row, None before the last
    pipeline stage; ``changed`` the same with another first document, of a packed row;
    ``gradients`` has this rank's part under each checkpoint key.
    """

    logits: Tensor | None
    changed: Tensor | None
    tokens: Tensor
    gradients: dict[str, Piece]


def run_all(folder: Path, names: Iterable[str]) -> list[Outcome]:
    """Make every run on this rank, one after the other, from one rank's checkpoints."""
    outcomes = []
    for name in names:
        of, spread = EVERY[name]
        run = ONE_RANK[of]
        if spread.pipeline_parallel > 1:
            middle = len(run.pattern) // 2
            run = attrs.evolve(run, pattern=f"{run.pattern[:middle]}|{run.pattern[middle:]}")
        save = folder / name if name in SAVED else None
        outcomes.append(run_one(attrs.evolve(run, spread=spread, start=folder / of, save=save)))
    return outcomes


def run_one(run: Run) -> Outcome:
    """Build, load, run forward and backward under upstream's schedule, reduce, and save."""
    from megatron.core import dist_checkpointing
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(run.spread) as groups:
        model = built(run, groups)
        tokens = own_tokens(run, groups)
        ids = run.ids[:, tokens]
        seen: list[Tensor] = []

        def forward(_: Any, module: Any) -> Any:
            logits = module(
                ids, tokens.expand_as(ids), None, runtime_gather_output=True, **packing(run)
            )
            # Upstream's schedule multiplies the loss by the size of cp, since its data parallelism
            # then takes the mean. The clip inside the recurrence would act on the multiple.
            return logits, lambda out: (cross_entropy(out, ids, seen) / groups.cp.size(), {})

        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=run.ids.shape[1],
            micro_batch_size=len(run.ids),
            forward_only=False,
        )
        reduce_gradients(model, groups)
        if run.save is not None:
            dist_checkpointing.save(model.sharded_state_dict(), str(run.save))
        changed = None
        if run.bounds is not None:
            first = tokens < run.bounds[1]
            other = torch.where(first, (ids + 1) % VOCABULARY, ids)
            with torch.no_grad():
                changed = model(
                    other, tokens.expand_as(ids), None, runtime_gather_output=True, **packing(run)
                )
        return Outcome(
            logits=seen[0] if seen else None,
            changed=changed,
            tokens=tokens,
            gradients=gradient_pieces(model),
        )


def built(run: Run, groups: Any) -> Any:
    """Build this rank's part of the model with the weights of ``run.start``."""
    from megatron_seams.runtime.checkpoint import load_checkpoint
    from megatron_seams.runtime.model.build import build_model

    stage, stages = groups.pp.rank(), groups.pp.size()
    model = build_model(run.plan(), pre_process=stage == 0, post_process=stage == stages - 1)
    if run.start is not None:
        load_checkpoint(model, run.start)
        return model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def own_tokens(run: Run, groups: Any) -> Tensor:
    """Say which tokens Megatron gives this context-parallel rank."""
    bounds = run.bounds or (0, run.ids.shape[1])
    spans = list(itertools.pairwise(bounds))
    return token_order(spans, groups.cp.size()).chunk(groups.cp.size())[groups.cp.rank()]


def packing(run: Run) -> dict[str, Any]:
    """Say where the documents are, as a trainer does."""
    from megatron.core.packed_seq_params import PackedSeqParams

    if run.bounds is None:
        return {}
    bounds = torch.tensor(run.bounds, dtype=torch.int32)
    longest = int(bounds.diff().max())
    described = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    return {"packed_seq_params": described}


def cross_entropy(logits: Tensor, ids: Tensor, seen: list[Tensor]) -> Tensor:
    """Sum over the tokens, so that the gradients are not small; keep the logits."""
    seen.append(logits.detach())
    return functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")


def reduce_gradients(model: Any, groups: Any) -> None:
    """Sum what each rank has a part of: by upstream's marks over tp, and everything over cp."""
    for parameter in model.parameters():
        if getattr(parameter, "sequence_parallel", False):
            dist.all_reduce(parameter.grad, group=groups.tp)
        dist.all_reduce(parameter.grad, group=groups.cp)


def gradient_pieces(model: Any) -> dict[str, Piece]:
    """Give the gradients by the keys and the places that the weights have in a checkpoint."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    for parameter in model.parameters():
        parameter.data = parameter.grad
    state = model.sharded_state_dict()
    apply_factories(state)
    return {
        part.key: Piece(
            start=tuple(part.global_offset),
            data=part.data.detach().clone(),
            whole=tuple(part.global_shape),
        )
        for part in nested_values(state)
        if isinstance(part, ShardedTensor)
    }


# --- the runs ---------------------------------------------------------------------------------

IDS = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(3))
ROW = torch.randint(0, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(4))
BOUNDS = (0, 4, 20, 32)
#: The paper's sharing: one query head and one key head.
PAPER = {"heads": 4, "K": 12, "V": 5}
#: Every other kind of sharing at two ranks.
SHARED = {"heads": 4, "K": 6, "V": 4, "q-heads": 4, "v-heads": 1, "w-heads": 1, "f-heads": 2}

#: Each on one rank, and what the others are held to.
ONE_RANK = {
    "hybrid": Run(pattern="R*R-", options=PAPER, ids=IDS),
    "packed hybrid": Run(pattern="R*R-", options=PAPER, ids=ROW, bounds=BOUNDS),
    "recurrent": Run(pattern="R-R-", options=PAPER, ids=IDS),
    "packed recurrent": Run(pattern="R-R-", options=PAPER, ids=ROW, bounds=BOUNDS),
    "shared": Run(pattern="RR", options=SHARED, ids=IDS),
}

TP = Parallelism(tensor_parallel=2)
SP = Parallelism(tensor_parallel=2, sequence_parallel=True)
PP = Parallelism(pipeline_parallel=2)
CP = Parallelism(context_parallel=2)

#: Name -> which of them, over how many ranks.
TWO_RANKS = {
    "TP 2": ("hybrid", TP),
    "TP 2, packed": ("packed hybrid", TP),
    "TP 2, shared heads": ("shared", TP),
    "TP 2 with SP": ("hybrid", SP),
    "TP 2 with SP, packed": ("packed hybrid", SP),
    "PP 2": ("hybrid", PP),
    "CP 2": ("recurrent", CP),
    "CP 2, packed": ("packed recurrent", CP),
    "CP 2, shared heads": ("shared", CP),
}
BOTH = Parallelism(tensor_parallel=2, sequence_parallel=True, context_parallel=2)
FOUR_RANKS = {
    "TP 2 with SP, CP 2": ("recurrent", BOTH),
    "TP 2 with SP, CP 2, packed": ("packed recurrent", BOTH),
    "TP 2 with SP, PP 2": ("hybrid", attrs.evolve(SP, pipeline_parallel=2)),
}


EVERY = TWO_RANKS | FOUR_RANKS

#: Whose checkpoints are read again on one rank.
SAVED = ("TP 2", "TP 2, shared heads", "TP 2 with SP, PP 2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, Outcome]:
    for name in ONE_RANK:
        (folder / name).mkdir()
    return {name: run_one(attrs.evolve(run, save=folder / name)) for name, run in ONE_RANK.items()}


Spread = Callable[[str], list[Outcome]]


@pytest.fixture(scope="module")
def spread(one_rank: dict[str, Outcome], folder: Path) -> Spread:
    """Tell a run's outcome on each of its ranks; all runs of a size are one launch."""
    del one_rank  # only to be first: it leaves the checkpoints

    @functools.cache
    def launched(world_size: int) -> dict[str, list[Outcome]]:
        runs = TWO_RANKS if world_size == 2 else FOUR_RANKS
        for name in runs:
            (folder / name).mkdir()
        by_rank = on_ranks(run_all, folder, list(runs), world_size=world_size)
        return dict(zip(runs, map(list, zip(*by_rank, strict=True)), strict=True))

    return lambda name: launched(2 if name in TWO_RANKS else 4)[name]


def cases(names: Iterable[str]) -> list[Any]:
    """Two ranks once for every release of Megatron; what four add is no release's matter."""
    marks = dict.fromkeys(TWO_RANKS, pytest.mark.release)
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


@pytest.mark.parametrize("name", cases(EVERY))
def test_the_outputs_are_one_ranks(name: str, one_rank: dict[str, Outcome], spread: Spread) -> None:
    expected = one_rank[EVERY[name][0]]["logits"]
    assert expected is not None
    seen: set[int] = set()
    for outcome in spread(name):
        if outcome["logits"] is not None:
            assert_close(outcome["logits"], expected[:, outcome["tokens"]], name)
            seen |= set(outcome["tokens"].tolist())
    assert seen == set(range(expected.shape[1]))


@pytest.mark.parametrize("name", cases(EVERY))
def test_the_gradients_are_one_ranks(
    name: str, one_rank: dict[str, Outcome], spread: Spread
) -> None:
    expected = one_rank[EVERY[name][0]]["gradients"]
    seen = {key: torch.zeros(piece["whole"], dtype=torch.bool) for key, piece in expected.items()}
    for outcome in spread(name):
        for key, piece in outcome["gradients"].items():
            assert piece["whole"] == expected[key]["whole"], key
            place = tuple(
                slice(start, start + size)
                for start, size in zip(piece["start"], piece["data"].shape, strict=True)
            )
            assert_close(piece["data"], expected[key]["data"][place], key)
            seen[key][place] = True
    assert all(mask.all() for mask in seen.values())


@pytest.mark.parametrize("name", cases(name for name in EVERY if name.endswith("packed")))
def test_no_document_reaches_the_next(name: str, spread: Spread) -> None:
    for outcome in spread(name):
        first = outcome["tokens"] < BOUNDS[1]
        same = (outcome["logits"] == outcome["changed"]).all(-1).squeeze(0)
        assert same[~first].all()
        assert not same[first].any()


@pytest.mark.parametrize("name", cases(SAVED))
def test_the_checkpoint_is_read_on_one_rank(name: str, spread: Spread, folder: Path) -> None:
    spread(name)  # leaves the checkpoint
    run = ONE_RANK[EVERY[name][0]]
    first, second = (weights(attrs.evolve(run, start=folder / of)) for of in (EVERY[name][0], name))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def weights(run: Run) -> dict[str, Tensor]:
    """Load a checkpoint on one rank."""
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world() as groups:
        return {key: weight.detach() for key, weight in built(run, groups).named_parameters()}


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    scale = max(1.0, expected.abs().max().item())
    worst = (found - expected).abs().max().item()
    assert worst <= 1e-5 * scale, f"{what}: {worst:.2e} apart at a scale of {scale:.2f}"
