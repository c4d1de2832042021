"""The parity task: whether a block follows a state beyond the lengths that it was trained on.

Bits are read one by one, and after each the parity of all so far is asked for: a machine of two
states. A recurrence has to find it, and attention can only approximate it. Each try trains a small
model on sequences of up to 64 bits and asks it at 256. Every try has the same data, steps and
learning rates to choose from; of each block's tries the one that is best at the trained lengths
counts.

Importing this module imports torch. Megatron is imported where a model is built.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import DialectTable, Model, Recipe

#: The lengths of the table's columns, in bits.
_COLUMNS: Final = (16, 64, 128, 256)


@attrs.frozen(kw_only=True)
class Answers:
    """A trained model's answers.

    Attributes:
        parameters: The weights of its layers.
        accuracy: The share of right answers after each bit, [asked].
        trained: The mean of that share over the lengths that it was trained on.
    """

    parameters: int
    accuracy: Tensor
    trained: float

    def row(self, name: str) -> str:
        """The line of a table under :meth:`Parity.compare`'s heading."""
        at = "".join(
            f"{self.accuracy[length - 1].item():8.1%}"
            for length in _COLUMNS
            if length <= len(self.accuracy)
        )
        return f"{name:<40}{self.parameters:>8,}{at}"


@attrs.frozen(kw_only=True)
class Parity:
    """The task.

    Attributes:
        longest: Bits of the longest sequence that is trained on.
        asked: Bits of the sequences that are asked about.
        batch: Sequences in a step.
        questions: Sequences that are asked about.
    """

    longest: int = 64
    asked: int = 256
    batch: int = 64
    questions: int = 512

    def recipe(
        self,
        name: str,
        pattern: str,
        *,
        tokens: Mapping[str, str],
        seams: Mapping[str, Mapping[str, Any]],
        positions: str = "none",
    ) -> Recipe:
        """Describe a model: an embedding of two bits, the layers, norm and output.

        Args:
            name: The model's.
            pattern: Its layers.
            tokens: Token -> family, beside Megatron's own.
            seams: The options of each seam.
            positions: Megatron's ``position_embedding_type``.
        """
        return Recipe(
            schema=1,
            model=Model(name=name, pattern=pattern),
            dialect=DialectTable(tokens=dict(tokens)),
            seams={seam: dict(options) for seam, options in seams.items()},
            megatron={
                "vocab_size": 2,
                "max_sequence_length": self.asked,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "position_embedding_type": positions,
                "normalization": "RMSNorm",
                "add_bias_linear": False,
                "hidden_dropout": 0.0,
                "attention_dropout": 0.0,
            },
        )

    def draw(self, length: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw bits and the parities so far, both [count, length]."""
        bits = torch.randint(0, 2, (count, length), generator=generator)
        return bits, bits.cumsum(dim=1) % 2

    def train(self, model: Any, rate: float, steps: int) -> None:
        """Train on sequences that grow from 3 bits to the longest in two thirds of the steps.

        Args:
            model: As ``build_model`` makes it.
            rate: Adam's learning rate at its peak.
            steps: Of the optimizer.
        """
        generator = torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
        for step in range(steps):
            done = step / steps
            warm = min(1.0, 20 * done + 1 / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (0.51 + 0.49 * math.cos(math.pi * done))
            longest = 3 + int((self.longest - 3) * min(1.0, 1.5 * done) ** 2)
            shortest = max(2, longest // 2)
            length = int(torch.randint(shortest, longest + 1, (), generator=generator))
            bits, parities = self.draw(length, self.batch, generator)
            loss = functional.cross_entropy(_logits(model, bits).flatten(0, 1), parities.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's is not annotated
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    @torch.no_grad()
    def ask(self, model: Any) -> Tensor:
        """Take the share of right answers after each bit, [asked]."""
        bits, parities = self.draw(self.asked, self.questions, torch.Generator().manual_seed(2))
        return (_logits(model, bits).argmax(dim=-1) == parities).float().mean(dim=0)

    def attempt(
        self,
        plan: Plan,
        rate: float,
        *,
        steps: int,
        seed: int,
        change: Callable[[Any], None] | None = None,
    ) -> Answers:
        """Build a model, train it and ask it, in a world of its own.

        Args:
            plan: Of a recipe of :meth:`recipe`.
            rate: Adam's learning rate at its peak.
            steps: Of the optimizer.
            seed: Of the initial weights.
            change: Changes the model before it is trained.
        """
        from megatron_seams.runtime.cpu.world import cpu_world
        from megatron_seams.runtime.model.build import build_model

        with cpu_world(seed=seed):
            model = build_model(plan)
            if change is not None:
                change(model)
            parameters = sum(weight.numel() for weight in model.decoder.layers.parameters())
            self.train(model, rate, steps)
            accuracy = self.ask(model)
        return Answers(
            parameters=parameters,
            accuracy=accuracy,
            trained=accuracy[: self.longest].mean().item(),
        )

    def compare(
        self, blocks: Mapping[str, Iterable[tuple[str, Callable[[], Answers]]]]
    ) -> dict[str, Answers]:
        """Make every try of every block, and print what came out.

        Args:
            blocks: A block's name -> its tries, each with a name for its line.

        Returns:
            A block's name -> its try that is best at the trained lengths.
        """
        started = time.perf_counter()
        heading = "".join(f"{length:>8}" for length in _COLUMNS if length <= self.asked)
        print(f"{'parity right after … bits':<40}{'weights':>8}{heading}")
        best: dict[str, tuple[str, Answers]] = {}
        for block, tries in blocks.items():
            for name, attempt in tries:
                answers = attempt()
                print(answers.row(name), flush=True)
                if block not in best or answers.trained > best[block][1].trained:
                    best[block] = name, answers
        seconds = time.perf_counter() - started
        print(f"\nthe best of each at the trained lengths, {seconds:.0f} s:")
        for name, answers in best.values():
            print(answers.row(name))
        return {block: answers for block, (_, answers) in best.items()}


def _logits(model: Any, bits: Tensor) -> Tensor:
    """Run the model: [b, s, 2]."""
    out: Tensor = model(bits, torch.arange(bits.shape[1]).expand_as(bits), None)
    return out
