"""Saves of a checkpoint that are killed: what a restart then finds.

As upstream's trainer does, a save writes a folder of its own, and the tracker file names it when it
is whole. Each save runs in a process of its own, with its own process group.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

import attrs
import torch

import forked
import megatron_seams as ms
from megatron_seams.base.files import replace_text
from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint, saved_receipt

TRACKER: Final = "latest_checkpointed_iteration.txt"
FIRST, SECOND = "iter_0000001", "iter_0000002"
_STARTED: Final = "started"
_SECONDS: Final = 120.0


@attrs.frozen(kw_only=True)
class Killed:
    """The files that a killed save left.

    Attributes:
        seconds: After how long it was killed; None for one that was left to its end.
        files: What the save had written of its own checkpoint.
        named: The checkpoint that the tracker names.
        loaded: Whether the first checkpoint loads with its weights, and the named one too.
        receipt: The receipt in the first one.
    """

    seconds: float | None
    files: tuple[str, ...]
    named: str
    loaded: bool
    receipt: str | None


def kill_saves(
    of: Plan | Path, model: Any, receipt: str, folder: Path, times: int, chance: random.Random
) -> list[Killed]:
    """Save once; let a second save end; then begin it that many times and kill it at random.

    Args:
        of: The model's plan or recipe, which each saving process builds again.
        model: Saved first, and loaded into.
        receipt: The text of its receipt.
        folder: Empty.
        times: How many saves are killed.
        chance: Picks the moments, up to a third more than what a whole save took.

    Returns:
        The files of the save that was not killed, and then of each killed one.
    """
    forked.save_without_a_manager()
    forked._environment_of_server()
    _save(model, receipt, folder, FIRST)
    first = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    child = _begin(of, receipt, folder)
    started = time.monotonic()
    child.join(_SECONDS)
    seconds = time.monotonic() - started
    ends = [_found(model, receipt, folder, first, None)]
    for _ in range(times):
        shutil.rmtree(folder / SECOND)
        replace_text(folder / TRACKER, FIRST)
        child = _begin(of, receipt, folder)
        after = chance.uniform(0.0, 4 / 3 * seconds)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):  # it may have ended before
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        ends.append(_found(model, receipt, folder, first, after))
    return ends


def _begin(of: Plan | Path, receipt: str, folder: Path) -> Any:
    """A process that has begun the second save."""
    (folder / _STARTED).unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_second, args=(of, receipt, folder))
    child.start()
    while not (folder / _STARTED).exists():
        assert child.is_alive(), "the saving process ended before it began to save"
        time.sleep(0.001)
    return child


def _second(of: Plan | Path, receipt: str, folder: Path) -> None:
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    torch.set_num_threads(1)
    forked.save_without_a_manager()
    if isinstance(of, Path):
        of = ms.resolve(ms.load_recipe(of), ms.read_environment())
    with cpu_world():
        model = build_model(of)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        (folder / _STARTED).touch()
        _save(model, receipt, folder, SECOND)


def _save(model: Any, receipt: str, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    save_checkpoint(model, receipt, folder / name)
    replace_text(folder / TRACKER, name)


def _found(model: Any, receipt: str, folder: Path, first: Any, after: float | None) -> Killed:
    """The state after a restart: it loads what the tracker names, compared with the receipt."""
    named = (folder / TRACKER).read_text()
    same = True
    for name in {FIRST, named}:
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        load_checkpoint(model, folder / name, receipt)
        if name == FIRST:
            weights = dict(model.named_parameters())
            same = all(bool((weights[each] == was).all()) for each, was in first.items())
    (folder / SECOND).mkdir(exist_ok=True)
    return Killed(
        seconds=after,
        files=tuple(sorted(file.name for file in (folder / SECOND).iterdir())),
        named=named,
        loaded=same,
        receipt=saved_receipt(folder / FIRST),
    )
