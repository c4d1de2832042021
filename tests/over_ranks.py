"""Runs of a model over real ranks of gloo, each compared with the same model on one rank.

A plugin's tests describe a :class:`Spread`: models on one rank, and which of them run over how many
ranks. Its checks compare outputs, gradients and checkpoints.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.cpu.ranks import on_ranks
from seam_support import plan, recipe

#: Read once on each rank, not for each of its runs.
here = functools.cache(read_environment)

VOCABULARY: Final = 64
SETTINGS: Final = {
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
IDS: Final = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(3))
#: A packed row, and where its documents begin.
ROW: Final = torch.randint(0, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(4))
BOUNDS: Final = (0, 4, 20, 32)

TP: Final = Parallelism(tensor_parallel=2)
SP: Final = Parallelism(tensor_parallel=2, sequence_parallel=True)
PP: Final = Parallelism(pipeline_parallel=2)
CP: Final = Parallelism(context_parallel=2)


@attrs.frozen(kw_only=True)
class Run:
    """One model on some ranks.

    Attributes:
        pattern: Its layers.
        tokens: Token -> family, beside Megatron's own.
        seams: Seam -> its options.
        start: The checkpoint that it starts from; None for the initial weights, moved a little.
        spread: Over how many ranks.
        ids: [b, s], the tokens.
        bounds: Where documents begin, of a packed row.
        save: Where its checkpoint is left.
    """

    pattern: str
    tokens: Mapping[str, str]
    seams: Mapping[str, Mapping[str, Any]]
    ids: Tensor = IDS
    start: Path | None = None
    spread: Parallelism = attrs.field(factory=Parallelism)
    bounds: tuple[int, ...] | None = None
    save: Path | None = None

    def built(self, groups: Any) -> Any:
        """This rank's part of the model, with the weights of ``start``."""
        from megatron_seams.runtime.checkpoint import load_checkpoint
        from megatron_seams.runtime.model.build import build_model

        asked = recipe(
            self.pattern,
            tokens=self.tokens,
            megatron=SETTINGS,
            seams=self.seams,
            parallelism={
                name.replace("_", "-"): value for name, value in attrs.asdict(self.spread).items()
            },
            runtime={"packed-sequences": self.bounds is not None},
        )
        stage, stages = groups.pp.rank(), groups.pp.size()
        model = build_model(
            plan(asked, here()), pre_process=stage == 0, post_process=stage == stages - 1
        )
        if self.start is not None:
            load_checkpoint(model, self.start)
            return model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    def own_tokens(self, groups: Any) -> Tensor:
        """Which tokens Megatron gives this context-parallel rank.

        Of each document's 2 · ranks chunks the rank's, and the one as far from the end.
        """
        ranks, rank = groups.cp.size(), groups.cp.rank()
        spans = itertools.pairwise(self.bounds or (0, self.ids.shape[1]))
        documents = [torch.arange(*span).chunk(2 * ranks) for span in spans]
        return torch.cat(
            [part for chunks in documents for part in (chunks[rank], chunks[-1 - rank])]
        )

    def packing(self) -> dict[str, Any]:
        """Where the documents are, as a trainer says it."""
        from megatron.core.packed_seq_params import PackedSeqParams

        if self.bounds is None:
            return {}
        bounds = torch.tensor(self.bounds, dtype=torch.int32)
        longest = int(bounds.diff().max())
        described = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        return {"packed_seq_params": described}


class Piece(TypedDict):
    """A rank's part of a tensor: where it begins in the whole one, and the whole one's shape."""

    start: tuple[int, ...]
    data: Tensor
    whole: tuple[int, ...]


class Outcome(TypedDict):
    """The results of a rank; plain values, which travel between processes.

    ``logits`` is [b, s, vocabulary] of this rank's ``tokens`` of the row, None before the last
    pipeline stage; ``changed`` the same with another first document, of a packed row;
    ``gradients`` has this rank's part under each checkpoint key.
    """

    logits: Tensor | None
    changed: Tensor | None
    tokens: Tensor
    gradients: dict[str, Piece]


def run_all(runs: Iterable[Run]) -> list[Outcome]:
    """Make every run on this rank, one after the other."""
    return [run_one(run) for run in runs]


def run_one(run: Run) -> Outcome:
    """Build, load, run forward and backward under upstream's schedule, reduce, and save."""
    from megatron.core import dist_checkpointing
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world(run.spread) as groups:
        model = run.built(groups)
        tokens = run.own_tokens(groups)
        ids = run.ids[:, tokens]
        seen: list[Tensor] = []

        def forward(_: Any, module: Any) -> Any:
            logits = module(
                ids, tokens.expand_as(ids), None, runtime_gather_output=True, **run.packing()
            )
            # Upstream's schedule multiplies the loss by the size of cp, since its data parallelism
            # then takes the mean. A clip inside a recurrence would act on the multiple.
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
                    other, tokens.expand_as(ids), None, runtime_gather_output=True, **run.packing()
                )
        return Outcome(
            logits=seen[0] if seen else None,
            changed=changed,
            tokens=tokens,
            gradients=gradient_pieces(model),
        )


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


def weights(run: Run, checkpoint: Path) -> dict[str, Tensor]:
    """Load a checkpoint on one rank."""
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world() as groups:
        model = attrs.evolve(run, start=checkpoint).built(groups)
        return {key: weight.detach() for key, weight in model.named_parameters()}


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Spread:
    """Models on one rank, and the same over several.

    Attributes:
        one_rank: Name -> a model, which the others are compared with.
        over: Name -> which of them, over how many ranks.
        saved: Those of ``over`` whose checkpoints are read again on one rank.
        folder: For checkpoints.
    """

    one_rank: Mapping[str, Run]
    over: Mapping[str, tuple[str, Parallelism]]
    saved: Iterable[str]
    folder: Path

    @functools.cached_property
    def expected(self) -> dict[str, Outcome]:
        """The outcomes on one rank, whose checkpoints the others start from."""
        return {
            name: run_one(attrs.evolve(run, save=self._place(name)))
            for name, run in self.one_rank.items()
        }

    @functools.cached_property
    def _outcomes(self) -> dict[str, list[Outcome]]:
        return {}

    def outcomes(self, name: str) -> list[Outcome]:
        """A run's outcome on each of its ranks; all runs of one number of ranks are one launch."""
        if name not in self._outcomes:
            assert self.expected  # first: it leaves the checkpoints
            world_size = self._ranks(name)
            names = [it for it in self.over if self._ranks(it) == world_size]
            by_rank = on_ranks(run_all, [self._run(it) for it in names], world_size=world_size)
            self._outcomes.update(zip(names, map(list, zip(*by_rank, strict=True)), strict=True))
        return self._outcomes[name]

    def _ranks(self, name: str) -> int:
        spread = self.over[name][1]
        return spread.tensor_parallel * spread.pipeline_parallel * spread.context_parallel

    def _run(self, name: str) -> Run:
        of, spread = self.over[name]
        run = self.one_rank[of]
        if spread.pipeline_parallel > 1:
            middle = len(run.pattern) // 2
            run = attrs.evolve(run, pattern=f"{run.pattern[:middle]}|{run.pattern[middle:]}")
        save = self._place(name) if name in self.saved else None
        return attrs.evolve(run, spread=spread, start=self.folder / of, save=save)

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        return place

    def check_outputs(self, name: str) -> None:
        """Insist that the logits of all ranks are one rank's."""
        expected = self.expected[self.over[name][0]]["logits"]
        assert expected is not None
        seen: set[int] = set()
        for outcome in self.outcomes(name):
            if outcome["logits"] is not None:
                assert_close(outcome["logits"], expected[:, outcome["tokens"]], name)
                seen |= set(outcome["tokens"].tolist())
        assert seen == set(range(expected.shape[1]))

    def check_gradients(self, name: str) -> None:
        """Insist that the gradients of all ranks make up one rank's."""
        expected = self.expected[self.over[name][0]]["gradients"]
        seen = {key: torch.zeros(of["whole"], dtype=torch.bool) for key, of in expected.items()}
        for outcome in self.outcomes(name):
            for key, piece in outcome["gradients"].items():
                assert piece["whole"] == expected[key]["whole"], key
                place = tuple(
                    slice(start, start + size)
                    for start, size in zip(piece["start"], piece["data"].shape, strict=True)
                )
                assert_close(piece["data"], expected[key]["data"][place], key)
                seen[key][place] = True
        assert all(mask.all() for mask in seen.values())

    def check_documents(self, name: str) -> None:
        """Insist that another first document of a packed row changes no later one."""
        bounds = self.one_rank[self.over[name][0]].bounds
        assert bounds is not None
        for outcome in self.outcomes(name):
            first = outcome["tokens"] < bounds[1]
            same = (outcome["logits"] == outcome["changed"]).all(-1).squeeze(0)
            assert same[~first].all()
            assert not same[first].any()

    def check_checkpoint(self, name: str) -> None:
        """Insist that what several ranks saved is read on one as what one saved."""
        self.outcomes(name)  # leaves the checkpoint
        of = self.over[name][0]
        first, second = (weights(self.one_rank[of], self.folder / it) for it in (of, name))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    """Insist on 1e-5 of the scale."""
    scale = max(1.0, expected.abs().max().item())
    worst = (found - expected).abs().max().item()
    assert worst <= 1e-5 * scale, f"{what}: {worst:.2e} apart at a scale of {scale:.2f}"
