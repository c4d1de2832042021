"""Small models with every shipped seam, for the tests on a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import attrs

SIZES: Final = {
    "hidden_size": 512,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "max_sequence_length": 128,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
    "gradient_accumulation_fusion": False,
    "attention_backend": "unfused",
}
EXPERTS: Final = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 256}
LATENT: Final = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_head_dim": 64,
    "qk_pos_emb_head_dim": 32,
    "v_head_dim": 64,
    "rope_type": "rope",
}
PRECISIONS: Final = {
    "fp32": {},
    "bf16": {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"},
}
NGRAM: Final = {"heads": 4, "table-rows": 1024}
BATCH, LENGTH = 2, 128


@attrs.frozen(kw_only=True)
class Case:
    """A model with one seam.

    Attributes:
        pattern: In the dialect ``megatron``, with ``R`` for the recurrent family.
        family: The seam's, held to be built by no native layer; None for a native model.
        options: ``[seams]`` of its recipe.
        families: ``[families]``.
        features: ``[[features]]``.
        megatron: Settings besides :data:`SIZES`.
    """

    pattern: str
    family: str | None
    options: dict[str, Any] = attrs.field(factory=dict)
    families: dict[str, str] = attrs.field(factory=dict)
    features: list[dict[str, Any]] = attrs.field(factory=list)
    megatron: dict[str, Any] = attrs.field(factory=dict)

    def plan(self, **megatron: Any) -> Any:
        """Resolve the case with further settings; skip where this Megatron has the family."""
        import pytest

        import megatron_seams as ms
        from megatron_seams.base.structure import structure
        from megatron_seams.planning.plan import Custom
        from megatron_seams.recipes.recipe import Recipe

        recipe, faults = structure(
            Recipe,
            {
                "schema": 1,
                "model": {"name": self.pattern, "pattern": self.pattern},
                "dialect": {"tokens": {"R": "recurrent"}},
                "families": self.families,
                "features": self.features,
                "seams": self.options,
                "megatron": SIZES | self.megatron | megatron,
            },
        )
        assert recipe is not None, faults
        plan = ms.resolve(recipe, ms.read_environment())
        for layer in plan.layers:
            if layer.family == self.family and not isinstance(layer.provider, Custom):
                pytest.skip(f"family {self.family} is {layer.provider.label} on this Megatron")
        return plan


#: 128 + 33 * 16 outputs of the fused projection of m2rnn are a multiple of 16, and so are the 2384
#: of mamba3 with 16 heads of 64, and the 4176 with MIMO.
CASES: Final = {
    "m2rnn": Case(
        pattern="*ER-", family="recurrent", options={"m2rnn": {"heads": 16}}, megatron=EXPERTS
    ),
    "mamba3": Case(pattern="*EM-", family="mamba3", families={"mamba": "mamba3"}, megatron=EXPERTS),
    "mamba3 MIMO": Case(
        pattern="*EM-",
        family="mamba3",
        options={"mamba3": {"groups": 2, "mimo-rank": 4}},
        families={"mamba": "mamba3"},
        megatron=EXPERTS,
    ),
    "mla": Case(pattern="+E+-", family="mla", megatron=EXPERTS | LATENT),
    "ngram": Case(
        pattern="*E-",
        family="ngram",
        features=[{"family": "ngram"}],
        options={"ngram_hash": NGRAM},
        megatron=EXPERTS,
    ),
    "engram": Case(
        pattern="*E-",
        family="engram",
        features=[{"family": "engram", "layers": [2]}],
        options={"engram": NGRAM},
        megatron=EXPERTS,
    ),
}


@contextlib.contextmanager
def one_gpu(*, for_graphs: bool = False) -> Iterator[None]:
    """One process on one GPU with Megatron's groups.

    Args:
        for_graphs: With the random number tracker that CUDA graphs want.
    """
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    torch.cuda.set_device(0)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1234, te_rng_tracker=for_graphs, force_reset_rng=True)
    print("card:", torch.cuda.get_device_name())
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def seeded(model: Any) -> Any:
    """The model on the GPU, with weights that depend on their names alone, and none of them zero.

    Features begin with projections of zeros, behind which no table has a gradient.
    """
    import torch

    model = model.cuda()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if not bool(weight.any()):
                generator = torch.Generator().manual_seed(len(name))
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


def build(plan: Any, weights: Any = None) -> Any:
    """The plan's model in training mode, seeded, or with the given weights."""
    import torch
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_seams.runtime.model.build import build_model

    model_parallel_cuda_manual_seed(1234)
    torch.manual_seed(1)
    model = seeded(build_model(plan))
    if weights is not None:
        model.load_state_dict(weights)
    return model.train()


def batch() -> tuple[Any, Any]:
    """Token ids and positions, [b, s] on the GPU."""
    import torch

    ids = torch.randint(0, 512, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).cuda()
    return ids, torch.arange(LENGTH, device="cuda").expand(BATCH, -1)


def loss_of(model: Any) -> Any:
    """The mean loss of every token of the batch, with its gradient."""
    ids, positions = batch()
    return model(ids, positions, None, labels=ids).float().mean()


def gradients(model: Any) -> tuple[float, dict[str, Any]]:
    """The loss and every gradient of a step, in float32."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model)
    loss.backward()
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), found


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference of two sets of gradients, over the largest gradient."""
    assert found.keys() == wanted.keys()
    scale = max(float(each.abs().max()) for each in wanted.values())
    assert 0 < scale < float("inf")
    return max(float((found[key] - wanted[key]).abs().max()) for key in wanted) / scale
