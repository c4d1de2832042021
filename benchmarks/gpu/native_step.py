"""A native-only plan against upstream's own model, alone on the card: step time and gradients.

``python benchmarks/gpu/native_step.py [--steps N] [--pattern TEXT ...]`` builds each pattern twice,
by ``build_model`` from a plan and by upstream's ``HybridModel`` with its own spec and its own
spelling of the pattern, takes steps of both in turns, and prints the ratio of the medians. Then it
takes one step of each with torch's deterministic algorithms, and compares every token's loss and
every gradient bit for bit. The exit code is 1 where a ratio is not 1.00 ± 0.01 or a bit differs.
"""

import argparse
import statistics
import sys

import torch
from one_gpu import PLAIN, milliseconds, plan_of, seed, start, step, tokens, undisturbed

#: In the dialect ``nam``; upstream spells ``*`` for its ``A`` and ``-`` for its ``F``.
PATTERNS = ("MAFEMAFE", "AEMEAEMEAEMM")
BAR = 0.01
BATCH, LENGTH, VOCAB = 8, 2048, 8192
#: Large enough for the device to be what a step waits for.
SIZES = PLAIN | {
    "hidden_size": 2048,
    "ffn_hidden_size": 8192,
    "num_attention_heads": 16,
    "vocab_size": VOCAB,
    "max_sequence_length": LENGTH,
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 2048,
    "moe_grouped_gemm": True,
}


def pair(pattern: str) -> dict[str, torch.nn.Module]:
    """The model of a plan, and upstream's own with the same weights."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_seams.runtime import compat
    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.settings import model_settings

    plan = plan_of(pattern, SIZES)
    assert not plan.custom_layers(), "a native-only plan is wanted"
    seed()
    ours = build_model(plan)
    chosen = model_settings(plan, plan.megatron, choose_backend().settings())
    seed()
    theirs = compat.build_hybrid_model(
        chosen.config,
        compat.hybrid_stack_spec,
        hybrid_layer_pattern=pattern.translate({ord("A"): "*", ord("F"): "-"}),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        **chosen.arguments,
    )
    kinds = [
        {name: type(module) for name, module in each.named_modules()} for each in (ours, theirs)
    ]
    assert kinds[0] == kinds[1], "other modules"
    own, other = ours.state_dict(), theirs.state_dict()
    assert own.keys() == other.keys(), "other keys"
    unequal = [
        key
        for key, value in own.items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, other[key])
    ]
    assert not unequal, f"other initial weights: {unequal}"
    return {"build_model": ours.cuda(), "HybridModel": theirs.cuda()}


def ratio(models: dict[str, torch.nn.Module], steps: int) -> float:
    """Print the medians of steps taken in turns; their ratio."""
    ids, positions = tokens(BATCH, LENGTH, VOCAB)
    for model in models.values():
        for _ in range(5):
            step(model, ids, positions)
    times: dict[str, list[float]] = {name: [] for name in models}
    with undisturbed():
        for turn in range(steps):
            for name in models if turn % 2 else reversed(models):
                model = models[name]
                times[name].append(milliseconds(lambda model=model: step(model, ids, positions)))
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, each in times.items():
        low, _, high = statistics.quantiles(each, n=4)
        print(
            f"  {name:12} median {medians[name]:8.3f} ms of {steps} steps, "
            f"quartiles {low:.3f} and {high:.3f}"
        )
    ours, theirs = times.values()
    low, high = interval(ours, theirs)
    pairs = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"  ratio of medians in {low:.4f} to {high:.4f} (95 %), median of pairs {pairs:.4f}")
    return medians["build_model"] / medians["HybridModel"]


def interval(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Where 95 % of the ratios of medians lie, of turns drawn anew from those that were taken."""
    drawn = torch.randint(len(ours), (2000, len(ours)), generator=torch.Generator().manual_seed(1))
    one, other = (
        torch.tensor(each, dtype=torch.float64)[drawn].median(dim=1).values
        for each in (ours, theirs)
    )
    ratios = one / other
    return float(ratios.quantile(0.025)), float(ratios.quantile(0.975))


def unequal_bits(models: dict[str, torch.nn.Module]) -> list[str]:
    """Everything that is not bitwise equal in one deterministic step of each."""
    ids, positions = tokens(BATCH, LENGTH, VOCAB)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for model in models.values():
            step(model, ids, positions)
        found = []
        with torch.no_grad():
            losses = [model(ids, positions, None, labels=ids) for model in models.values()]
        if not torch.equal(*losses):
            found.append("the loss of some token")
        parameters = [dict(model.named_parameters()) for model in models.values()]
        for name, weight in parameters[0].items():
            one, other = weight.grad, parameters[1][name].grad
            if one is None or other is None:
                found += [name] if one is not other else []
            elif not torch.equal(one, other):
                found.append(name)
    finally:
        torch.use_deterministic_algorithms(False)
    print(f"  {len(parameters[0])} parameters; of gradients and losses differ: {found or 'none'}")
    return found


def main() -> int:
    """Measure each pattern, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pattern", nargs="*", default=PATTERNS)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return 0
    start()
    lines, missed = [], False
    for pattern in asked.pattern:
        print(pattern)
        models = pair(pattern)
        found = ratio(models, asked.steps)
        unequal = unequal_bits(models)
        missed |= abs(found - 1) > BAR or bool(unequal)
        lines.append(f"{pattern:14}{found:8.4f}   {'differ' if unequal else 'bitwise equal'}")
        del models
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, B{BATCH} S{LENGTH}")
    print("pattern          ratio   gradients")
    print("\n".join(lines))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
