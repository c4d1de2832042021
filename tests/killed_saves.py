"""Saves of a checkpoint that are killed: what a restart then finds.

As upstream's trainer does, a save writes a folder of its own, and the tracker file names it when it
is whole.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

import attrs
import torch

from forked import save_without_a_manager
from megatron_seams.base.files import replace_text
from megatron_seams.runtime.checkpoint import load_checkpoint, save_checkpoint, saved_receipt

TRACKER: Final = "latest_checkpointed_iteration.txt"


@attrs.frozen(kw_only=True)
class Killed:
    """What a killed save left.

    Attributes:
        seconds: After how long it was killed.
        files: How many files the killed save had written.
        named: The checkpoint that the tracker names.
        loaded: Whether that one loads, with the weights of the first save.
        receipt: The receipt in it.
    """

    seconds: float
    files: int
    named: str
    loaded: bool
    receipt: str | None


def kill_saves(
    model: Any, receipt: str, folder: Path, times: int, chance: random.Random
) -> list[Killed]:
    """Save once; then begin another save that many times, and kill each at a random moment."""
    save_without_a_manager()
    seconds = _save(model, receipt, folder, "iter_0000001")
    first = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ends = []
    for _ in range(times):
        shutil.rmtree(folder / "iter_0000002", ignore_errors=True)
        replace_text(folder / TRACKER, "iter_0000001")
        child = os.fork()
        if child == 0:
            os.setsid()
            try:
                with torch.no_grad():
                    for weight in model.parameters():
                        weight.add_(1.0)
                _save(model, receipt, folder, "iter_0000002")
            finally:
                os._exit(0)
        after = chance.uniform(0.0, 1.2 * seconds)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ends.append(_found(model, receipt, folder, first, after))
    return ends


def _save(model: Any, receipt: str, folder: Path, name: str) -> float:
    started = time.monotonic()
    (folder / name).mkdir()
    save_checkpoint(model, receipt, folder / name)
    replace_text(folder / TRACKER, name)
    return time.monotonic() - started


def _found(model: Any, receipt: str, folder: Path, first: Any, after: float) -> Killed:
    """What a restart finds: it loads what the tracker names, and holds it to the receipt."""
    named = (folder / TRACKER).read_text()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    load_checkpoint(model, folder / "iter_0000001", receipt)
    same = all(bool((first[name] == weight).all()) for name, weight in model.named_parameters())
    if named != "iter_0000001":
        # The save had ended; its checkpoint is whole too.
        load_checkpoint(model, folder / named, receipt)
        load_checkpoint(model, folder / "iter_0000001", receipt)
    unfinished = folder / "iter_0000002"
    return Killed(
        seconds=after,
        files=len(list(unfinished.iterdir())) if unfinished.is_dir() else 0,
        named=named,
        loaded=same,
        receipt=saved_receipt(folder / "iter_0000001"),
    )
