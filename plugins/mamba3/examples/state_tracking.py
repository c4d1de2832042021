"""The use of a turning state: parity, where a state that only decays has a coin's chance.

A state that only decays, as Mamba-2's does, forgets or adds up; one that turns by half a circle at
each 1 is a machine of two states. One Mamba-3 block is trained on sequences of up to 64 bits and
asked at 256; so is the same block with its angles held at zero, which leaves it the real transition
of Mamba-2; and so is, where a seam for it is installed, a recurrent block, whose state is not
linear. :mod:`megatron_seams.runtime.parity` has the task.

    python plugins/mamba3/examples/state_tracking.py

All are whole models that the registry builds: embedding, one block, norm and output.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import torch

from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.runtime.parity import Answers, Parity

TASK: Final = Parity()
#: Adam's learning rates, at their peak.
RATES: Final = (5e-3, 2e-2)


@attrs.frozen(kw_only=True)
class Block:
    """A model of the comparison.

    Attributes:
        family: Of its one layer.
        turns: Whether its angles are trained; at zero otherwise.
        options: ``[seams.NAME]``.
    """

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
BLOCKS: Final = {
    "Mamba-3": Block(family="mamba3", options=SIZES),
    "Mamba-3, angles at zero": Block(family="mamba3", turns=False, options=SIZES),
    "recurrent": Block(family="recurrent"),
}


def planned(name: str, block: Block) -> Plan | None:
    """Plan the model; None, and a line that says so, where nothing that is installed builds it."""
    recipe = TASK.recipe(name, "X", tokens={"X": block.family}, seams=block.options)
    try:
        return resolve(recipe, read_environment())
    except Refusal:
        print(f"{name}: nothing that is installed builds it")
        return None


def hold_angles_at_zero(model: Any) -> None:
    """Set the angles' rows of the input projection to zero, and keep them so."""
    mixer = model.decoder.layers[0].mixer
    weight, count = mixer.in_proj.weight, mixer.layout.A
    with torch.no_grad():
        weight[-count:] = 0
    kept = torch.ones_like(weight)
    kept[-count:] = 0
    weight.register_hook(lambda gradient: gradient * kept)


def main(arguments: list[str] | None = None) -> dict[str, Answers]:
    """Make every try and print what came out; the best of each block comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each try")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def tries(name: str, block: Block) -> Iterator[tuple[str, Callable[[], Answers]]]:
        plan = planned(name, block)
        for rate in RATES if plan is not None else ():
            change = None if block.turns else hold_angles_at_zero
            yield (
                f"{name}, rate {rate:g}",
                functools.partial(
                    TASK.attempt, plan, rate, steps=chosen.steps, seed=chosen.seed, change=change
                ),
            )

    return TASK.compare({name: tries(name, block) for name, block in BLOCKS.items()})


if __name__ == "__main__":
    main()
