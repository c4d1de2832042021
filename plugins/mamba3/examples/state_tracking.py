"""What a turning state is for: parity, where a state that only decays has a coin's chance.

Bits are read one by one, and after each the parity of all so far is asked for. A state that only
decays, as Mamba-2's does, forgets or adds up; one that turns by half a circle at each 1 is a
machine of two states. One Mamba-3 block is trained on sequences of up to 64 bits and asked at 256;
so is the same block with its angles held at zero, which leaves it the real transition of Mamba-2;
and so is, where a seam for it is installed, a recurrent block, whose state is not linear. Every try
has the same data, steps and learning rates to choose from; of each block's tries the one that is
best at the trained lengths counts.

    python plugins/mamba3/examples/state_tracking.py

All are whole models that the registry builds: embedding, one block, norm and output.
"""

import argparse
import math
import time
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
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
RATES: Final = (5e-3, 2e-2)


@attrs.frozen(kw_only=True)
class Block:
    """What is compared.

    Attributes:
        name: What the table calls it.
        family: Of its one layer.
        turns: Whether its angles are trained; at zero otherwise.
        options: ``[seams.NAME]``.
    """

    name: str
    family: str
    turns: bool = True
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


#: Steps that begin large: at the usual 0.1 a state turns by a tenth of half a circle at the most.
SIZES: Final = {
    "mamba3": {
        "state-size": 16,
        "head-dim": 16,
        "rope-fraction": 1.0,
        "dt-min": 0.5,
        "dt-max": 1.0,
    }
}
BLOCKS: Final = (
    Block(name="Mamba-3", family="mamba3", options=SIZES),
    Block(name="Mamba-3, angles at zero", family="mamba3", turns=False, options=SIZES),
    Block(name="recurrent", family="recurrent"),
)


@attrs.frozen(kw_only=True)
class Try:
    """A trained model.

    Attributes:
        block: Its layer.
        rate: Its learning rate.
        parameters: Of the layer.
        accuracy: The share of right answers after each bit, [ASKED].
    """

    block: Block
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
        return f"{f'{self.block.name}, rate {self.rate:g}':<40}{self.parameters:>8,}{at}"


def planned(block: Block) -> Plan:
    """Plan the model.

    Raises:
        Refusal: Nothing that is installed builds the block.
    """
    recipe = Recipe(
        schema=1,
        model=Model(name=block.name, pattern="X"),
        dialect=DialectTable(tokens={"X": block.family}),
        seams=block.options,
        megatron={
            "vocab_size": 2,
            "max_sequence_length": ASKED,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "position_embedding_type": "none",
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    )
    return resolve(recipe, read_environment())


def hold_angles_at_zero(mixer: Any) -> None:
    """Set the angles' rows of the input projection to zero, and keep them so."""
    weight, count = mixer.in_proj.weight, mixer.layout.A
    with torch.no_grad():
        weight[-count:] = 0
    kept = torch.ones_like(weight)
    kept[-count:] = 0
    weight.register_hook(lambda gradient: gradient * kept)


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


def attempt(block: Block, plan: Plan, rate: float, *, steps: int, seed: int) -> Try:
    """Build, train and ask, in a world of its own."""
    with cpu_world(seed=seed):
        model = build_model(plan)
        if not block.turns:
            hold_angles_at_zero(model.decoder.layers[0].mixer)
        parameters = sum(weight.numel() for weight in model.decoder.layers.parameters())
        train(model, rate, steps)
        return Try(block=block, rate=rate, parameters=parameters, accuracy=ask(model))


def main(arguments: list[str] | None = None) -> list[Try]:
    """Make every try and print what came out; the best of each block comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each try")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    print(f"{'parity right after … bits':<40}{'weights':>8}{'16':>8}{'64':>8}{'128':>8}{'256':>8}")
    best = []
    for block in BLOCKS:
        try:
            plan = planned(block)
        except Refusal:
            print(f"{block.name}: nothing that is installed builds it")
            continue
        tries = []
        for rate in RATES:
            tries.append(attempt(block, plan, rate, steps=chosen.steps, seed=chosen.seed))
            print(tries[-1].row, flush=True)
        best.append(max(tries, key=lambda one: one.trained))
    print(f"\nthe best of each at the trained lengths, {time.perf_counter() - started:.0f} s:")
    for one in best:
        print(one.row)
    return best


if __name__ == "__main__":
    main()
