"""The loss of a small model with and without n-grams: ``python benchmarks/ngram_quality.py``.

The smoke run of one small native model, without a feature, with the hashed n-gram embedding and
with the gated memory, at equal steps, batches and native initial weights: the loss on text that no
step used, in nats per byte, for each seed. The text is the standard library's sources, as for
`registry smoke`, or a file.
"""

import argparse
import io
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_seams.base.structure import structure
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.runtime.smoke.run import SmokeReport, run_smoke

TABLES = {"heads": 4, "table-rows": 8192}
#: Variant -> the parts of its recipe that add a feature.
VARIANTS: dict[str, dict[str, Any]] = {
    "neither": {},
    "ngram": {
        "features": [{"family": "ngram"}],
        "policy": {"pin": {"ngram": "ngram_hash"}},
        "seams": {"ngram_hash": TABLES},
    },
    "engram": {
        "features": [{"family": "engram", "layers": [2]}],
        "policy": {"pin": {"engram": "engram"}},
        "seams": {"engram": TABLES},
    },
}


#: What every variant has, as published models have it.
SETTINGS = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def run(variant: str, seed: int, steps: int, pattern: str, data: Path | None) -> SmokeReport:
    """One smoke run."""
    table = {
        "schema": 1,
        "model": {"name": variant, "pattern": pattern},
        "megatron": SETTINGS,
        "smoke": {"seed": seed},
        **VARIANTS[variant],
    }
    recipe, faults = structure(Recipe, table)
    if recipe is None:
        raise SystemExit("; ".join(fault.message for fault in faults))
    plan = resolve(recipe, read_environment())
    return run_smoke(plan, recipe.smoke, data, steps, Console(file=io.StringIO()))


def main() -> None:
    """Run every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150, help="of each run (default: 150)")
    parser.add_argument("--pattern", default="*-*-*-", help="the layers (default: *-*-*-)")
    parser.add_argument("--data", type=Path, help="a text file")
    asked = parser.parse_args()
    losses: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    heads = "".join(f"{f'seed {seed}':>9}" for seed in asked.seeds)
    print(f"{asked.pattern}, {asked.steps} steps; validation loss, nats per byte")
    print(f"{'':10}{heads}{'mean':>9}{'parameters':>13}{'tokens/s':>10}")
    for variant, found in losses.items():
        for seed in asked.seeds:
            report = run(variant, seed, asked.steps, asked.pattern, asked.data)
            found.append(report.held_back_loss)
        each = "".join(f"{loss:9.4f}" for loss in found)
        print(
            f"{variant:10}{each}{statistics.mean(found):9.4f}{report.parameters:13,}"
            f"{report.tokens_per_second:10,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
