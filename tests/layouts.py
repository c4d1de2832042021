"""One model in several parallel layouts over gloo: its losses, gradients and checkpoints.

The gradients are compared by name: each layout writes them in the place of its weights and saves
them as a checkpoint, whose tensors are whole whatever the layout.
"""

import datetime
from pathlib import Path
from typing import Any, Final

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

import megatron_seams as ms
from megatron_seams.recipes.recipe import Parallelism, Recipe

ROWS, LENGTH = 4, 32
TOLERANCE: Final = 1e-5
#: Settings of latent attention, which a model without any does not have.
LATENT: Final = frozenset(
    {
        *("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"),
        "rope_type",
    }
)
_PATIENCE: Final = datetime.timedelta(minutes=5)


@attrs.frozen(kw_only=True)
class Layout:
    """A layout.

    Attributes:
        name: As the table has it.
        parallelism: The ranks.
        pattern: The pattern with its stages; the recipe's own if empty.
        chunks: Model chunks on each pipeline rank.
        alone: Whether the pattern is another model's: the recurrence and experts, nothing else.
    """

    name: str
    parallelism: Parallelism
    pattern: str = ""
    chunks: int = 1
    alone: bool = False

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        each = self.parallelism
        pieces = each.tensor_parallel * each.pipeline_parallel * each.context_parallel
        return max(pieces, each.expert_parallel * each.pipeline_parallel)

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe with this layout."""
        model = attrs.evolve(base.model, pattern=self.pattern or base.model.pattern)
        recipe = attrs.evolve(base, model=model, parallelism=self.parallelism)
        if not self.alone:
            return recipe
        seams = {"m2rnn": base.seams["m2rnn"]}
        # Upstream pins memory for the rotations of a context-parallel rank, which needs a GPU;
        # nothing of this model reads them.
        kept = {key: value for key, value in base.megatron.items() if key not in LATENT}
        kept["position_embedding_type"] = "none"
        return attrs.evolve(
            recipe, features=(), seams=seams, families={}, install={}, megatron=kept
        )

    def plan(self, base: Recipe) -> Any:
        """Its plan in this environment."""
        return ms.resolve(self.recipe(base), ms.read_environment())


@attrs.frozen(kw_only=True)
class Compared:
    """A layout against one rank.

    Attributes:
        loss: The greatest difference of a token's loss.
        gradient: The greatest difference of a gradient, as a share of its tensor's greatest value.
        tensors: How many gradients were compared.
        moved: Whether its checkpoint, loaded by name, has the weights that it loaded.
    """

    loss: float
    gradient: float
    tensors: int
    moved: bool

    @property
    def equal(self) -> bool:
        """Whether all is within the tolerance."""
        return max(self.loss, self.gradient) <= TOLERANCE and self.moved and self.tensors > 0


def compare(layout: Layout, base: Recipe, folder: Path) -> Compared:
    """Run a layout, and one rank of the same model, from the same weights."""
    from megatron_seams.runtime.cpu.ranks import on_ranks

    single = attrs.evolve(
        layout, parallelism=Parallelism(), chunks=1, pattern=layout.pattern.replace("|", "")
    )
    for name in ("one", "weights", "grads"):
        (folder / name).mkdir()
    (one,) = on_ranks(run, single, base, folder / "one", None, world_size=1)
    ranks = on_ranks(run, layout, base, folder, folder / "one", world_size=layout.world_size)
    losses = next(found for found in ranks if found is not None)
    return Compared(
        loss=float((losses - one).abs().max()),
        **_gradients(folder),
        moved=all(map(torch.equal, *_both(folder, "weights"))),
    )


def _gradients(folder: Path) -> dict[str, Any]:
    pairs = list(zip(*_both(folder, "grads"), strict=True))
    worst = 0.0
    for found, wanted in pairs:
        if found.numel():
            greatest = float(wanted.abs().max())
            worst = max(worst, float((found - wanted).abs().max()) / (greatest or 1.0))
    return {"gradient": worst, "tensors": len(pairs)}


def _both(folder: Path, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a layout's checkpoint, and of one rank's, in the same order."""
    found, wanted = read_whole(folder / name), read_whole(folder / "one" / name)
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    return list(found.values()), [wanted[key] for key in found]


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    state = {
        key: torch.empty(part.size, dtype=part.properties.dtype)
        for key, part in reader.read_metadata().state_dict_metadata.items()
        if isinstance(part, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return dict(sorted(state.items()))


def run(layout: Layout, base: Recipe, folder: Path, weights: Path | None) -> Tensor | None:
    """On a rank: save weights and gradients of one step; the losses where this rank has them."""
    from megatron.core import dist_checkpointing, parallel_state

    from megatron_seams.runtime.cpu.world import cuda_on_cpu, gloo_world
    from megatron_seams.runtime.model.build import build_model

    torch.set_num_threads(1)
    for name in ("weights", "grads"):
        (folder / name).mkdir(exist_ok=True)
    plan, chunks = layout.plan(base), layout.chunks
    virtual = chunks if chunks > 1 else None
    with (
        cuda_on_cpu(),
        gloo_world(
            plan.parallelism, virtual_pipeline_parallel=virtual, timeout=_PATIENCE
        ) as groups,
    ):
        stage, last = groups.pp.rank(), groups.pp.size() - 1
        models = []
        for chunk in range(chunks):
            if virtual:
                parallel_state.set_virtual_pipeline_model_parallel_rank(chunk)
            models.append(
                build_model(
                    plan,
                    pre_process=stage == 0 and chunk == 0,
                    post_process=stage == last and chunk == chunks - 1,
                    vp_stage=chunk if virtual else None,
                )
            )

        def states() -> dict[str, Any]:
            return {f"model{n}": model.sharded_state_dict() for n, model in enumerate(models)}

        if weights is not None:
            loaded = dist_checkpointing.load(states(), str(weights / "weights"))
            for number, model in enumerate(models):
                model.load_state_dict(loaded[f"model{number}"], strict=True)
        dist_checkpointing.save(states(), str(folder / "weights"))
        seen = _step(models, groups)
        for model in models:
            _complete(model, groups)
        with torch.no_grad():
            for model in models:
                for weight in model.parameters():
                    weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        dist_checkpointing.save(states(), str(folder / "grads"))
        return _whole(seen, groups) if seen else None


def _step(models: list[nn.Module], groups: Any) -> list[Tensor]:
    """Forward and backward of ROWS micro-batches of one row; their losses [1, s], in order."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.conformance.parallel import _own
    from megatron_seams.runtime.model.next_token import NextTokenBatch

    ids = torch.randint(0, 256, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(7))
    seen: list[Tensor] = []

    def forward(rows: Any, module: Any) -> Any:
        whole = NextTokenBatch.of(next(rows))
        piece = NextTokenBatch(
            inputs=_own(whole.inputs, groups),
            labels=_own(whole.labels, groups),
            positions=_own(whole.positions, groups),
        )
        out = module(**(piece.training() if module.post_process else piece.forward()))

        def loss(losses: Tensor) -> Any:
            seen.append(losses.detach())
            # The schedule multiplies by the number of context-parallel ranks: it takes a loss that
            # was divided by the tokens of all of them.
            return losses.mean() / groups.cp.size(), {}

        return out, loss

    streams = [iter(ids.split(1)) for _ in models]
    chunked = len(models) > 1
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=streams if chunked else streams[0],
        model=models if chunked else models[0],
        num_microbatches=ROWS,
        seq_length=LENGTH,
        micro_batch_size=1,
        forward_only=False,
    )
    return seen


def _complete(model: nn.Module, groups: Any) -> None:
    """Complete the gradients, as upstream does between backward pass and step.

    Every data-parallel rank has the same rows here, so that only the experts, which see the rows of
    all ranks that share them, have more than one rank's gradient.
    """
    for weight in model.parameters():
        if weight.grad is None:
            continue
        if getattr(weight, "sequence_parallel", False):
            dist.all_reduce(weight.grad, group=groups.tp)
        if groups.cp.size() > 1:
            dist.all_reduce(weight.grad, group=groups.cp)
            weight.grad /= groups.cp.size()
        if not getattr(weight, "allreduce", True):
            weight.grad /= groups.ep.size()


def _whole(seen: list[Tensor], groups: Any) -> Tensor:
    """The losses of all rows [b, s], put together from the pieces of context-parallel ranks."""
    mine = torch.cat(seen)
    size = groups.cp.size()
    if size == 1:
        return mine
    pieces = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(pieces, mine, group=groups.cp)
    halves = [piece.chunk(2, dim=1) for piece in pieces]
    front = [half[0] for half in halves]
    return torch.cat([*front, *(half[1] for half in reversed(halves))], dim=1)
