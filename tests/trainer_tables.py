"""The bars of runs under upstream's trainer, as rows of a table: one GPU, layouts, drills."""

import math
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from trainer_drills import DRILLS, RANKS, Drill, drill, lay_out
from trainer_runs import FRESH, HALF, MOVABLE, Ran, Trainer, differing

HERE: Final = Path(__file__).parent
RECIPE: Final = (HERE / "gpu" / "drn.toml").read_text()
#: The recipe, its tables shared by the expert-parallel ranks.
EXPERT_RECIPE: Final = RECIPE.replace(
    "table-rows = 8192", 'table-rows = 8192\ndivided-over = "expert"'
)
#: A layout's loss may be this many times as far from one GPU's as, until then, those of one GPU
#: are with micro batches of another size, which changes nothing but the order of bf16 sums.
TIMES_NOISE: Final = 4.0
#: Where that noise is smaller than bf16 resolves, this counts.
LEAST_NOISE: Final = 2e-3
#: What layouts train with: with the rate of the other runs rounding alone is 0.18 by iteration 20.
LAYOUT_RATE: Final = ("--lr", "3e-4")
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
        pattern: The recipe's with its stages.
        megatron: What it adds to ``[megatron]``.
        further: What it adds to the command line.
        fresh: Whether it begins with an optimizer without states: upstream keeps those of experts
            apart once they are spread over ranks, and reads no checkpoint from before.
    """

    name: str
    parallelism: str = ""
    pattern: str = ""
    megatron: str = ""
    further: tuple[str, ...] = ()
    fresh: bool = False

    def recipe(self, base: str = RECIPE) -> str:
        """The recipe ``base`` with this layout."""
        spread = f"[parallelism]\n{self.parallelism}\n\n[megatron]\n{self.megatron}\n"
        text = base.replace("[megatron]\n", spread)
        return text.replace(self.pattern.replace("|", ""), self.pattern) if self.pattern else text


LAYOUTS: Final = (
    Layout(name="TP2 + SP", parallelism="tensor-parallel = 2\nsequence-parallel = true"),
    # Each rank needs a layer with an indexer, or upstream's sum of their losses waits for ever.
    Layout(name="PP2", parallelism="pipeline-parallel = 2", pattern="DE|DRER"),
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
        figures=f"{losses_of(plain)}, {milliseconds_of(plain)}",
    )
    mode = ("--deterministic-mode",)
    first = trainer.train("first", recipe, *mode)
    yield Row(
        what="deterministic mode, 20 iterations",
        holds=first.code == 0 and falls(first.floats()),
        seconds=first.seconds,
        figures=f"{losses_of(first)}, {milliseconds_of(first)}",
    )
    if first.code == 0:
        again = trainer.train("again", recipe, *mode, source="first")
        yield resumed("resumed at 10, deterministic mode", trainer, first, again)
    if plain.code != 0:
        return
    again = trainer.train("plain-again", recipe, source="plain")
    names = ("plain", "plain-again")
    row = resumed("resumed at 10, without that mode", trainer, plain, again, names)
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


def layouts(
    trainer: Trainer, chosen: str = "", at_once: int = 1, base: str = RECIPE
) -> Iterator[Row]:
    """Two GPUs, each layout from one GPU's checkpoint at iteration 10: losses, the receipt.

    Every layout so also loads the weights of another layout, and but for experts its optimizer.
    """
    recipe = trainer.prepare("drn", base)
    always = (*MOVABLE, *LAYOUT_RATE)
    one = trainer.train("one", recipe, *always)
    yield Row(
        what="one GPU",
        holds=one.code == 0 and falls(one.floats(), by=0.1),
        seconds=one.seconds,
        figures=f"{losses_of(one)}, {milliseconds_of(one)}",
    )
    if one.code != 0:
        return
    asked = [layout for layout in LAYOUTS if chosen in layout.name]
    names = {layout: re.sub(r"\W+", "-", layout.name) for layout in asked}
    recipes = {layout: trainer.prepare(names[layout], layout.recipe(base)) for layout in asked}
    smaller = ("--micro-batch-size", "1")
    with ThreadPoolExecutor(at_once) as pool:

        def start(name: str, of: Path, *further: str, **how: int) -> Future[Ran]:
            words = (*always, *further)
            return pool.submit(lambda: trainer.train(name, of, *words, source="one", **how))

        noise = start("noise", recipe, *smaller, gpu=0)
        fresh = start("fresh", recipe, *FRESH, gpu=1)
        fresh_noise = start("fresh-noise", recipe, *FRESH, *smaller, gpu=0)
        runs = {
            layout: start(
                *(names[layout], recipes[layout], *layout.further),
                *(FRESH if layout.fresh else ()),
                ranks=2,
            )
            for layout in asked
        }
    base = {False: (one, noise.result()), True: (fresh.result(), fresh_noise.result())}
    for without, (plain, other) in base.items():
        yield Row(
            what=f"one GPU, micro batches of 1{', no states' if without else ''}",
            holds=plain.code == other.code == 0,
            seconds=other.seconds,
            figures=f"the noise: {_said(plain, other)}" if other.code == 0 else other.why(),
        )
    for layout, running in runs.items():
        ran, (plain, other) = running.result(), base[layout.fresh]
        yield Row(
            what=f"{layout.name}, from one GPU's at {HALF}",
            holds=ran.code == 0 and within_noise(plain, ran, other),
            seconds=ran.seconds,
            figures=_said(plain, ran) if ran.code == 0 else ran.why(),
        )
    if done := {
        names[layout]: recipes[layout] for layout in asked if runs[layout].result().code == 0
    }:
        yield _carried(trainer, done)


def within_noise(one: Ran, ran: Ran, noise: Ran) -> bool:
    """Whether no loss of a run is further from one GPU's than rounding explains."""
    bar = LEAST_NOISE
    for apart, rounding in zip(_differences(one, ran), _differences(one, noise), strict=True):
        bar = max(bar, TIMES_NOISE * rounding)
        if not apart <= bar:  # NaN is none either
            return False
    return True


def drills(trainer: Trainer, other: Path | None, chosen: str = "") -> Iterator[Row]:
    """Two ranks of which one is odd: each has to stop both, and to say why."""
    asked = [each for each in DRILLS if chosen in each.name and (other or not each.another)]
    lay_out(trainer, other)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda each: _drilled(trainer, each), asked)


def _drilled(trainer: Trainer, asked: Drill) -> Row:
    ended = drill(trainer, asked)
    refusals = ended.refusals()
    refusal = next((text for text in refusals if re.search(asked.refusal, text)), None)
    stopped = "" if ended.stopped is None else f"{ended.stopped:.1f} s after its arrival, "
    return Row(
        what=asked.name,
        holds=refusal is not None
        and len(ended.codes) == RANKS
        and all(code not in (0, None) for code in ended.codes)
        and not ended.trained,
        seconds=ended.seconds,
        figures=f"{stopped}codes {ended.codes}: {refusal or refusals or 'no output'}",
    )


def falls(losses: Iterable[float], by: float = 0.5) -> bool:
    """Whether all losses are finite, and the last is well below the first."""
    values = list(losses)
    return all(map(math.isfinite, values)) and values[-1] < values[0] - by


def losses_of(ran: Ran) -> str:
    """The first loss, one at the half and the last; why it failed, where it did."""
    values = ran.floats()
    if ran.code != 0:
        return ran.why()
    return f"loss {values[0]:.4f} -> {values[HALF - 1]:.4f} -> {values[-1]:.4f}"


def milliseconds_of(ran: Ran) -> str:
    """The time of the first iteration, and the median of those from the third on."""
    found = re.findall(r"elapsed time per iteration \(ms\): ([0-9.]+)", ran.text)
    times = [float(text) for text in found]
    if len(times) < 3:
        return f"{len(times)} iterations"
    return f"first iteration {times[0] / 1e3:.1f} s, then {statistics.median(times[2:]):.0f} ms"


def _differences(one: Ran, other: Ran) -> list[float]:
    """How far the losses of two runs are apart after their common iteration."""
    pairs = zip(one.floats(HALF + 1), other.floats(HALF + 1), strict=True)
    return [abs(first - second) for first, second in pairs]


def apart(one: Ran, other: Ran) -> float:
    """The greatest difference of two runs' losses after their common iteration, or NaN."""
    differences = _differences(one, other)
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _said(one: Ran, other: Ran) -> str:
    first, half, whole = (max(_differences(one, other)[:count]) for count in (1, 5, None))
    return f"losses differ by {first:.1e} at 11, by at most {half:.1e} to 15, {whole:.1e} to 20"


def resumed(
    what: str, trainer: Trainer, first: Ran, again: Ran, names: tuple[str, str] = ("first", "again")
) -> Row:
    """Whether a resumed run has the losses and the last checkpoint of the one it goes on from."""
    if again.code != 0:
        return Row(what=what, holds=False, seconds=again.seconds, figures=again.why())
    compared, unequal = differing(*(trainer.checkpoint(name) for name in names))
    # The second loss of a run is known to half the decimals' precision.
    same = apart(first, again) < 5e-6
    return Row(
        what=what,
        holds=same and not unequal and compared > 0,
        seconds=again.seconds,
        figures=f"losses {'equal' if same else f'{apart(first, again):.1e} apart'}, "
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
