"""What a non-linear state is for: parity, followed beyond the lengths that were trained on.

Bits are read one by one, and after each the parity of all so far is asked for: a machine of two
states, which a recurrence has to find and attention can only approximate. One M²RNN block and one
attention block of the same width and about the same size are trained on sequences of up to 64 bits
and then asked at 256; so is attention with a feed-forward layer after it. Every try has the same
data, steps and learning rates to choose from, and attention two positional schemes besides; of each
block's tries the one that is best at the trained lengths counts.

    python plugins/m2rnn/examples/state_tracking.py --plot state_tracking.png

All are whole models that the registry builds: embedding, one block, norm and output. The plot
wants matplotlib (``pip install 'megatron-seams-m2rnn[example]'``).
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import DialectTable, Model, Recipe
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model

TRAINED: Final = 64
ASKED: Final = 256
#: Sequences in a step, and sequences that are asked about.
BATCH: Final = 64
QUESTIONS: Final = 512
#: Adam's learning rates, at their peak.
RATES: Final = (2e-3, 2e-2)


@attrs.frozen(kw_only=True)
class Block:
    """What is compared.

    Attributes:
        name: What the table calls it.
        layers: Its pattern in Megatron's symbols, with R for recurrent.
        positions: The values of Megatron's ``position_embedding_type`` that are tried.
        options: ``[seams.NAME]``.
    """

    name: str
    layers: str
    positions: tuple[str, ...]
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


BLOCKS: Final = (
    Block(
        name="M2RNN",
        layers="R",
        positions=("none",),
        options={"m2rnn": {"heads": 8, "K": 16, "V": 8}},
    ),
    # Rotary and none at all: the two of Megatron's that are not bound to a length.
    Block(name="attention", layers="*", positions=("rope", "none")),
    # Three times the size, for whoever counts a block with its feed-forward layer.
    Block(name="attention, MLP", layers="*-", positions=("rope",)),
)


@attrs.frozen(kw_only=True)
class Try:
    """A trained model.

    Attributes:
        block: Its layers.
        positions: Its positional scheme.
        rate: Its learning rate.
        parameters: Of the layers.
        accuracy: The share of right answers after each bit, [ASKED].
    """

    block: Block
    positions: str
    rate: float
    parameters: int
    accuracy: Tensor

    @property
    def trained(self) -> float:
        """The share of right answers at the lengths that it was trained on."""
        return self.accuracy[:TRAINED].mean().item()

    @property
    def row(self) -> str:
        """Its line of the table."""
        at = "".join(f"{self.accuracy[length - 1].item():8.1%}" for length in (16, 64, 128, 256))
        how = f"{self.block.name}, positions {self.positions}, rate {self.rate:g}"
        return f"{how:<40}{self.parameters:>8,}{at}"


def build(block: Block, positions: str) -> Any:
    """Plan and build the model."""
    recipe = Recipe(
        schema=1,
        model=Model(name=block.name, pattern=block.layers),
        dialect=DialectTable(tokens={"R": "recurrent"}),
        seams=block.options,
        megatron={
            "vocab_size": 2,
            "max_sequence_length": ASKED,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "position_embedding_type": positions,
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    )
    return build_model(resolve(recipe, read_environment()))


def draw(length: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw bits and the parities so far, both [count, length]."""
    bits = torch.randint(0, 2, (count, length), generator=generator)
    return bits, bits.cumsum(dim=1) % 2


def logits(model: Any, bits: Tensor) -> Tensor:
    """Run the model: [b, s, 2]."""
    out: Tensor = model(bits, torch.arange(bits.shape[1]).expand_as(bits), None)
    return out


def train(model: Any, rate: float, steps: int) -> None:
    """Train on sequences that grow from 3 bits to 64 in two thirds of the steps."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    for step in range(steps):
        done = step / steps
        warm = min(1.0, 20 * done + 1 / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.51 + 0.49 * math.cos(math.pi * done))
        longest = 3 + int((TRAINED - 3) * min(1.0, 1.5 * done) ** 2)
        shortest = max(2, longest // 2)
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        bits, parities = draw(length, BATCH, generator)
        loss = functional.cross_entropy(logits(model, bits).flatten(0, 1), parities.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def ask(model: Any) -> Tensor:
    """Take the share of right answers after each of 256 bits, [ASKED]."""
    bits, parities = draw(ASKED, QUESTIONS, torch.Generator().manual_seed(2))
    return (logits(model, bits).argmax(dim=-1) == parities).float().mean(dim=0)


def attempt(block: Block, positions: str, rate: float, *, steps: int, seed: int) -> Try:
    """Build, train and ask, in a world of its own."""
    with cpu_world(seed=seed):
        model = build(block, positions)
        parameters = sum(weight.numel() for weight in model.decoder.layers.parameters())
        train(model, rate, steps)
        return Try(
            block=block,
            positions=positions,
            rate=rate,
            parameters=parameters,
            accuracy=ask(model),
        )


def draw_plot(best: list[Try], file: Path) -> None:
    """Plot the share of right answers against the length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for one in best:
        axes.plot(range(1, ASKED + 1), 100 * one.accuracy, label=one.block.name, linewidth=1.2)
    axes.axvline(TRAINED, color="grey", linestyle=":", linewidth=1)
    axes.text(TRAINED + 3, 75, "trained up to here", color="grey", fontsize=8)
    axes.set(xlabel="bits read", ylabel="parity right, %", ylim=(40, 103), xlim=(1, ASKED))
    axes.legend(frameon=False, loc="center right")
    figure.savefig(file, dpi=100)


def main(arguments: list[str] | None = None) -> list[Try]:
    """Make every try and print what came out; the best of each block comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each try")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    print(f"{'parity right after … bits':<40}{'weights':>8}{'16':>8}{'64':>8}{'128':>8}{'256':>8}")
    best = []
    for block in BLOCKS:
        tries = []
        for positions, rate in itertools.product(block.positions, RATES):
            tries.append(attempt(block, positions, rate, steps=chosen.steps, seed=chosen.seed))
            print(tries[-1].row, flush=True)
        best.append(max(tries, key=lambda one: one.trained))
    print(f"\nthe best of each at the trained lengths, {time.perf_counter() - started:.0f} s:")
    for one in best:
        print(one.row)
    if chosen.plot is not None:
        draw_plot(best, chosen.plot)
    return best


if __name__ == "__main__":
    main()
