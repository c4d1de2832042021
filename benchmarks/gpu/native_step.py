"""A native-only plan against upstream's own model, alone on the card: step time and gradients.

``python benchmarks/gpu/native_step.py [--steps N] [--pattern TEXT]`` builds ``M*-EM*-E`` (or TEXT)
twice, by ``build_model`` and by upstream's ``HybridModel`` with its own spec, takes steps of both
in turns, and prints the ratio of the medians (the bar is 1.00 ± 0.01) and whether every gradient
is bitwise equal.
"""

import argparse
import statistics
import sys

import torch

PATTERN = "M*-EM*-E"
SIZES = {
    "hidden_size": 1024,
    "ffn_hidden_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 8192,
    "max_sequence_length": 1024,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
    "gradient_accumulation_fusion": False,
    "attention_backend": "unfused",
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 1024,
    "bf16": True,
    "params_dtype": "bfloat16",
}
BATCH, LENGTH = 4, 1024


def step(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> float:
    """One forward and backward pass; its milliseconds on the card."""
    model.zero_grad(set_to_none=True)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    model(ids, positions, None, labels=ids).float().mean().backward()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pattern", default=PATTERN)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return 0
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    import megatron_seams as ms
    from megatron_seams.base.structure import structure
    from megatron_seams.recipes.recipe import Recipe
    from megatron_seams.runtime import compat
    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.settings import model_settings

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    torch.cuda.set_device(0)
    parallel_state.initialize_model_parallel()
    recipe, faults = structure(
        Recipe,
        {
            "schema": 1,
            "model": {"name": asked.pattern, "pattern": asked.pattern},
            "megatron": SIZES,
        },
    )
    assert recipe is not None, faults
    plan = ms.resolve(recipe, ms.read_environment())
    model_parallel_cuda_manual_seed(1234)
    ours = build_model(plan).cuda()
    chosen = model_settings(plan, plan.megatron, choose_backend().settings())
    model_parallel_cuda_manual_seed(1234)
    theirs = compat.build_hybrid_model(
        chosen.config,
        compat.hybrid_stack_spec,
        hybrid_layer_pattern=asked.pattern,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        **chosen.arguments,
    ).cuda()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 8192, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).cuda()
    positions = torch.arange(LENGTH, device="cuda").expand(BATCH, -1)
    models = {"build_model": ours, "HybridModel": theirs}
    for model in models.values():
        for _ in range(5):
            step(model, ids, positions)
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(asked.steps):
        for name in models if turn % 2 else reversed(models):
            times[name].append(step(models[name], ids, positions))
    own = dict(ours.named_parameters())
    unequal = [
        name
        for name, weight in theirs.named_parameters()
        if (weight.grad is None) != (own[name].grad is None)
        or (weight.grad is not None and not torch.equal(weight.grad, own[name].grad))
    ]
    again = {name: weight.grad.clone() for name, weight in own.items() if weight.grad is not None}
    step(ours, ids, positions)
    moving = [name for name in again if not torch.equal(again[name], own[name].grad)]
    print(f"card {torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.pattern}")
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        print(f"{name:12} median {median:8.3f} ms of {asked.steps} steps")
    print(f"ratio {medians['build_model'] / medians['HybridModel']:.4f}")
    print(
        f"{len(own)} parameters, gradients that differ: {len(unequal)} {unequal[:3]}; of the same "
        f"model run twice: {len(moving)} {moving[:3]}"
    )
    return int(bool(set(unequal) - set(moving)))


if __name__ == "__main__":
    sys.exit(main())
