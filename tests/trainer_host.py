"""The bars of runs under upstream's trainer with n-gram tables on the host, on one GPU."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from trainer_runs import HALF, MOVABLE, STEPS, Ran, Trainer
from trainer_tables import (
    LEAST_NOISE,
    RECIPE,
    Row,
    apart,
    falls,
    losses_of,
    milliseconds_of,
    resumed,
)

#: The recipe of the other runs, with its tables on the host.
HOST_RECIPE: Final = RECIPE.replace("table-rows = 8192", 'table-rows = 8192\ntables = "host"')
#: The projection starts at zero, so that rows first move in step 2: up to this loss both places
#: have the same numbers but for weight decay, which rows on the host do without. Later resident
#: rows also move where Adam's momentum has them.
ALIKE: Final = 3
_MODE: Final = ("--deterministic-mode",)
#: Upstream's other optimizers that the rows follow -> the arguments that ask for them.
OPTIMIZERS: Final = {
    "precision-aware optimizer": ("--use-precision-aware-optimizer",),
    "offloaded optimizer": (
        *("--use-precision-aware-optimizer", "--optimizer-cpu-offload"),
        *("--optimizer-offload-fraction", "1.0"),
    ),
}
#: What is refused -> the arguments that ask for it.
REFUSED: Final = {
    "the older format": ("--ckpt-format", "torch"),
    "asynchronous saves": ("--async-save", "--use-persistent-ckpt-worker"),
}


def hosted(trainer: Trainer, chosen: str = "") -> Iterator[Row]:
    """Tables on the host against resident ones, resumed runs, a change of place, refusals.

    Args:
        trainer: Of one GPU.
        chosen: Part of the names of the runs beside the first two; all by default.
    """
    there = trainer.prepare("there", RECIPE)
    resident = trainer.train("resident", there, *_MODE)
    yield _trained("resident tables", resident)
    recipe = trainer.prepare("host", HOST_RECIPE)
    host = trainer.train("host", recipe, *_MODE)
    row = _trained("tables on the host", host)
    first = max(_difference(resident, host, step) for step in range(1, ALIKE + 1))
    yield attrs.evolve(
        row,
        holds=row.holds and first <= LEAST_NOISE,
        figures=f"{row.figures}; from resident {first:.1e} to {ALIKE}, "
        f"{apart(resident, host):.1e} in {HALF + 1} to {STEPS}",
    )
    if host.code != 0:
        return
    if chosen in (what := f"host, resumed at {HALF}"):
        again = trainer.train("host-again", recipe, *_MODE, source="host")
        yield resumed(what, trainer, host, again, ("host", "host-again"))
    if chosen in (what := "host, distributed optimizer"):
        divided = trainer.train("divided", recipe, *_MODE, *MOVABLE)
        yield _trained(what, divided)
        if divided.code == 0:
            again = trainer.train("divided-again", recipe, *_MODE, *MOVABLE, source="divided")
            names = ("divided", "divided-again")
            yield resumed(f"{what}, resumed", trainer, divided, again, names)
    for name, further in OPTIMIZERS.items():
        if chosen in (what := f"host, {name}"):
            short, words = name.split()[0], (*_MODE, *MOVABLE, *further)
            ran = trainer.train(short, recipe, *words)
            yield _trained(what, ran)
            if ran.code == 0:
                yield as_resident(f"{what}, resumed", trainer, ran, short, words, there)
    if chosen in (what := f"host, from resident at {HALF}"):
        yield _moved(what, trainer, resident)
    for name, asked in REFUSED.items():
        if chosen in (what := f"host, {name}: refused"):
            ran = trainer.train(f"refused-{asked[0].strip('-')}", recipe, *asked)
            yield Row(
                what=what,
                holds=ran.code not in (0, None) and not ran.losses and "SEAM-R11" in ran.text,
                seconds=ran.seconds,
                figures=ran.why(),
            )


def as_resident(
    what: str, trainer: Trainer, ran: Ran, name: str, words: tuple[str, ...], there: Path
) -> Row:
    """A resumed run; where it fails, whether one with resident tables fails by the same error."""
    again = trainer.train(f"{name}-again", trainer.folder / "host.toml", *words, source=name)
    row = resumed(what, trainer, ran, again, (name, f"{name}-again"))
    if again.code == 0:
        return row
    trainer.train(f"{name}-there", there, *words)
    other = trainer.train(f"{name}-there-again", there, *words, source=f"{name}-there")
    same = other.code not in (0, None) and other.why() == again.why()
    told = "the same" if same else f"exit code {other.code}, {other.why()}"
    return attrs.evolve(row, holds=same, figures=f"{row.figures}; with resident tables: {told}")


def _trained(what: str, ran: Ran) -> Row:
    return Row(
        what=what,
        holds=ran.code == 0 and falls(ran.floats()),
        seconds=ran.seconds,
        figures=f"{losses_of(ran)}, {milliseconds_of(ran)}",
    )


def _moved(what: str, trainer: Trainer, resident: Ran) -> Row:
    """A run that puts its tables on the host half-way, with the change accepted on its receipt."""
    recipe = trainer.folder / "moved.toml"
    recipe.write_text(HOST_RECIPE)
    receipt = recipe.with_suffix(".json")
    shutil.copyfile(trainer.folder / "there.json", receipt)
    trainer.registry("accept", receipt, "--recipe", recipe, "--reason", "tables on the host")
    ran = trainer.train("moved", recipe, *_MODE, source="resident")
    first = _difference(resident, ran, HALF + 1)
    return Row(
        what=what,
        holds=ran.code == 0 and first <= LEAST_NOISE,
        seconds=ran.seconds,
        figures=f"{first:.1e} from resident at {HALF + 1}, {apart(resident, ran):.1e} to {STEPS}"
        if ran.code == 0
        else ran.why(),
    )


def _difference(one: Ran, other: Ran, step: int) -> float:
    return abs(one.losses.get(step, math.inf) - other.losses.get(step, 0.0))
