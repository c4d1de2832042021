"""What runs under upstream's trainer have to show, as rows of a table: one GPU, layouts, drills."""

import math
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from trainer_drills import DRILLS, RANKS, Drill, drill, lay_out
from trainer_runs import FRESH, HALF, MOVABLE, STEPS, Ran, Trainer, differing

HERE: Final = Path(__file__).parent
RECIPE: Final = (HERE / "gpu" / "drn.toml").read_text()
#: A layout's losses may be this many times as far from one GPU's as those of one GPU are with
#: micro batches of another size, which changes nothing but the order of bf16 sums.
TIMES_NOISE: Final = 4.0
#: Where that noise is smaller than a loss is printed or bf16 resolves it, this counts.
LEAST_NOISE: Final = 2e-3
#: Drills that run at once: they only start up.
AT_ONCE: Final = 4


@attrs.frozen(kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        what: The run.
        holds: Whether it shows what it has to.
        seconds: From launch to end.
        figures: What was measured, or why it failed.
    """

    what: str
    holds: bool
    seconds: float
    figures: str

    def __str__(self) -> str:
        """The line."""
        return (
            f"{self.what:38} {'holds' if self.holds else 'FAILS':6} {self.seconds:6.1f} s  "
            f"{self.figures}"
        )


@attrs.frozen(kw_only=True)
class Layout:
    """A layout of two GPUs.

    Attributes:
        name: As the table has it.
        parallelism: The recipe's ``[parallelism]``.
        megatron: What it adds to ``[megatron]``.
        further: What it adds to the command line.
        fresh: Whether it begins with an optimizer without states: upstream keeps those of experts
            apart once they are spread over ranks, and reads no checkpoint from before.
    """

    name: str
    parallelism: str = ""
    megatron: str = ""
    further: tuple[str, ...] = ()
    fresh: bool = False

    def recipe(self) -> str:
        """The recipe with this layout."""
        return RECIPE.replace(
            "[megatron]\n", f"[parallelism]\n{self.parallelism}\n\n[megatron]\n{self.megatron}\n"
        )


LAYOUTS: Final = (
    Layout(name="TP2 + SP", parallelism="tensor-parallel = 2\nsequence-parallel = true"),
    Layout(name="PP2", parallelism="pipeline-parallel = 2"),
    Layout(
        name="EP2, alltoall",
        parallelism="expert-parallel = 2",
        megatron='moe_token_dispatcher_type = "alltoall"',
        fresh=True,
    ),
    Layout(
        name="DP2, both overlaps",
        further=("--overlap-grad-reduce", "--overlap-param-gather"),
    ),
)


def single(trainer: Trainer) -> Iterator[Row]:
    """One GPU: the printed command, resumed runs, the receipt, another model's checkpoint."""
    recipe = trainer.prepare("drn", RECIPE)
    plain = trainer.train("plain", recipe)
    yield Row(
        what="the printed command, 20 iterations",
        holds=plain.code == 0 and falls(plain.floats()),
        seconds=plain.seconds,
        figures=f"{_losses(plain)}, {_milliseconds(plain)}",
    )
    mode = ("--deterministic-mode",)
    first = trainer.train("first", recipe, *mode)
    yield Row(
        what="deterministic mode, 20 iterations",
        holds=first.code == 0 and falls(first.floats()),
        seconds=first.seconds,
        figures=f"{_losses(first)}, {_milliseconds(first)}",
    )
    if first.code == 0:
        again = trainer.train("again", recipe, *mode, source="first")
        yield _resumed("resumed at 10, deterministic mode", trainer, first, again)
    if plain.code != 0:
        return
    again = trainer.train("plain-again", recipe, source="plain")
    row = _resumed("resumed at 10, without that mode", trainer, plain, again, last="plain")
    yield attrs.evolve(row, holds=again.code == 0)
    yield _carried(trainer, {"plain": recipe})
    changed = RECIPE.replace("table-rows = 8192", "table-rows = 4096")
    refused = trainer.train("other", trainer.prepare("changed", changed), source="plain")
    yield Row(
        what="another model's checkpoint",
        holds=refused.code not in (0, None)
        and not refused.losses
        and refused.text.count("[SEAM-V05]") == 1,
        seconds=refused.seconds,
        figures=refused.why(),
    )


def layouts(trainer: Trainer, chosen: str = "") -> Iterator[Row]:
    """Two GPUs, each layout from one GPU's checkpoint at iteration 10: losses, the receipt.

    Every layout so also loads weights and optimizer of another layout.
    """
    recipe = trainer.prepare("drn", RECIPE)
    one = trainer.train("one", recipe, *MOVABLE)
    yield Row(
        what="one GPU, distributed optimizer",
        holds=one.code == 0 and falls(one.floats()),
        seconds=one.seconds,
        figures=f"{_losses(one)}, {_milliseconds(one)}",
    )
    if one.code != 0:
        return
    with ThreadPoolExecutor(2) as pool:  # one on either GPU
        noisy = pool.submit(
            lambda: trainer.train(
                *("noise", recipe, *MOVABLE, "--micro-batch-size", "1"), source="one", gpu=0
            )
        )
        forgot = pool.submit(
            lambda: trainer.train("fresh", recipe, *MOVABLE, *FRESH, source="one", gpu=1)
        )
        noise, fresh = noisy.result(), forgot.result()
    bar = max(TIMES_NOISE * _apart(one, noise), LEAST_NOISE)
    for what, ran, figures in (
        ("micro batches of 1 for 2", noise, f"the noise: {_said(one, noise)}"),
        ("states left out", fresh, _losses(fresh)),
    ):
        yield Row(
            what=f"one GPU, {what}",
            holds=ran.code == 0,
            seconds=ran.seconds,
            figures=figures if ran.code == 0 else ran.why(),
        )
    done: dict[str, Path] = {}
    for layout in LAYOUTS:
        if chosen not in layout.name:
            continue
        name = re.sub(r"\W+", "-", layout.name)
        recipe = trainer.prepare(name, layout.recipe())
        further = (*MOVABLE, *layout.further, *(FRESH if layout.fresh else ()))
        ran = trainer.train(name, recipe, *further, ranks=2, source="one")
        like = fresh if layout.fresh else one
        yield Row(
            what=f"{layout.name}, from one GPU's at {HALF}",
            holds=ran.code == 0 and _apart(like, ran) <= bar,
            seconds=ran.seconds,
            figures=f"{_said(like, ran)} (bar {bar:.1e}), {_milliseconds(ran)}"
            if ran.code == 0
            else ran.why(),
        )
        if ran.code == 0:
            done[name] = recipe
    if done:
        yield _carried(trainer, done)


def drills(trainer: Trainer, other: Path | None, chosen: str = "") -> Iterator[Row]:
    """Two ranks of which one is odd: each has to stop both, and to say why."""
    asked = [each for each in DRILLS if chosen in each.name and (other or not each.another)]
    lay_out(trainer, other)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda each: _drilled(trainer, each), asked)


def _drilled(trainer: Trainer, asked: Drill) -> Row:
    ended = drill(trainer, asked)
    refusals = ended.refusals()
    said = next((text for text in refusals if re.search(asked.said, text)), None)
    stopped = "" if ended.stopped is None else f"{ended.stopped:.1f} s after its arrival, "
    return Row(
        what=asked.name,
        holds=said is not None
        and len(ended.codes) == RANKS
        and all(code not in (0, None) for code in ended.codes)
        and not ended.trained,
        seconds=ended.seconds,
        figures=f"{stopped}codes {ended.codes}: {said or refusals or 'nothing was said'}",
    )


def falls(losses: Iterable[float]) -> bool:
    """Whether all losses are finite, and the last is well below the first."""
    values = list(losses)
    return all(map(math.isfinite, values)) and values[-1] < values[0] - 0.5


def _losses(ran: Ran) -> str:
    values = ran.floats()
    if ran.code != 0:
        return ran.why()
    return f"loss {values[0]:.4f} -> {values[HALF - 1]:.4f} -> {values[-1]:.4f}"


def _milliseconds(ran: Ran) -> str:
    found = re.findall(r"elapsed time per iteration \(ms\): ([0-9.]+)", ran.text)
    times = [float(text) for text in found]
    if len(times) < 3:
        return f"{len(times)} iterations"
    return f"first iteration {times[0] / 1e3:.1f} s, then {statistics.median(times[2:]):.0f} ms"


def _apart(one: Ran, other: Ran) -> float:
    """The greatest difference between the losses of two runs after their common iteration."""
    pairs = zip(one.floats(HALF + 1), other.floats(HALF + 1), strict=True)
    differences = [abs(first - second) for first, second in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _said(one: Ran, other: Ran) -> str:
    return f"losses of {HALF + 1} to {STEPS} differ by at most {_apart(one, other):.1e}"


def _resumed(what: str, trainer: Trainer, first: Ran, again: Ran, last: str = "first") -> Row:
    if again.code != 0:
        return Row(what=what, holds=False, seconds=again.seconds, figures=again.why())
    resumed = "again" if last == "first" else f"{last}-again"
    compared, unequal = differing(trainer.checkpoint(last), trainer.checkpoint(resumed))
    # The second loss of a run is known to half the decimals' precision.
    same = _apart(first, again) < 5e-6
    return Row(
        what=what,
        holds=same and not unequal and compared > 0,
        seconds=again.seconds,
        figures=f"losses {'equal' if same else f'{_apart(first, again):.1e} apart'}, "
        f"{compared - len(unequal)} of {compared} tensors of the last checkpoint bitwise equal",
    )


def _carried(trainer: Trainer, runs: Mapping[str, Path]) -> Row:
    """Whether the last checkpoint of each run carries the receipt of the run's recipe."""
    started = time.monotonic()
    receipts = {
        trainer.checkpoint(name): recipe.with_suffix(".json") for name, recipe in runs.items()
    }
    for receipt in receipts.values():
        trainer.registry("verify", receipt)  # raises where it does not hold
    found = trainer.carry(receipts)
    return Row(
        what="receipts in the last checkpoints",
        holds=bool(found) and all(found),
        seconds=time.monotonic() - started,
        figures=f"{sum(found)} of {len(found)} carry their run's; each verifies",
    )
