"""The use of a non-linear state: parity, followed beyond the lengths that were trained on.

One M²RNN block and one attention block of the same width and about the same size are trained on
sequences of up to 64 bits and then asked at 256; so is attention with a feed-forward layer after
it. Attention has two positional schemes to choose from besides.
:mod:`megatron_seams.runtime.parity` has the task.

    python plugins/m2rnn/examples/state_tracking.py --plot state_tracking.png

All are whole models that the registry builds: embedding, one block, norm and output. The plot
wants matplotlib (``pip install 'megatron-seams-m2rnn[example]'``).
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch

from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.runtime.parity import Answers, Parity

TASK: Final = Parity()
#: Adam's learning rates, at their peak.
RATES: Final = (2e-3, 2e-2)


@attrs.frozen(kw_only=True)
class Block:
    """A model of the comparison.

    Attributes:
        layers: Its pattern in Megatron's symbols, with R for recurrent.
        positions: The values of Megatron's ``position_embedding_type`` that are tried.
        options: ``[seams.NAME]``.
    """

    layers: str
    positions: tuple[str, ...]
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


BLOCKS: Final = {
    "M2RNN": Block(
        layers="R",
        positions=("none",),
        options={"m2rnn": {"heads": 8, "K": 16, "V": 8}},
    ),
    # Rotary and none at all: the two of Megatron's that are not bound to a length.
    "attention": Block(layers="*", positions=("rope", "none")),
    # Three times the size, for whoever counts a block with its feed-forward layer.
    "attention, MLP": Block(layers="*-", positions=("rope",)),
}


def draw_plot(best: Mapping[str, Answers], file: Path) -> None:
    """Plot the share of right answers against the length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for name, one in best.items():
        axes.plot(range(1, TASK.asked + 1), 100 * one.accuracy, label=name, linewidth=1.2)
    axes.axvline(TASK.longest, color="grey", linestyle=":", linewidth=1)
    axes.text(TASK.longest + 3, 75, "trained up to here", color="grey", fontsize=8)
    axes.set(xlabel="bits read", ylabel="parity right, %", ylim=(40, 103), xlim=(1, TASK.asked))
    axes.legend(frameon=False, loc="center right")
    figure.savefig(file, dpi=100)


def main(arguments: list[str] | None = None) -> dict[str, Answers]:
    """Make every try and print what came out; the best of each block comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each try")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    environment = read_environment()

    def tries(name: str, block: Block) -> Iterator[tuple[str, Callable[[], Answers]]]:
        for positions, rate in itertools.product(block.positions, RATES):
            recipe = TASK.recipe(
                name,
                block.layers,
                tokens={"R": "recurrent"},
                seams=block.options,
                positions=positions,
            )
            yield (
                f"{name}, positions {positions}, rate {rate:g}",
                functools.partial(
                    TASK.attempt,
                    resolve(recipe, environment),
                    rate,
                    steps=chosen.steps,
                    seed=chosen.seed,
                ),
            )

    best = TASK.compare({name: tries(name, block) for name, block in BLOCKS.items()})
    if chosen.plot is not None:
        draw_plot(best, chosen.plot)
    return best


if __name__ == "__main__":
    main()
