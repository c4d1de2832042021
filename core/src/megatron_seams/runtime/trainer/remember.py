"""The receipt of a run in the checkpoints that upstream's trainer saves and loads.

Upstream saves its arguments with every checkpoint, as common state. The receipt is one more of
them: it needs no key of the model, and no change to upstream's saving.
"""

from pathlib import Path
from typing import Any, Final

from megatron_seams.base.files import read_file
from megatron_seams.runtime.checkpoint import RECEIPT, hold_checkpoint
from megatron_seams.runtime.trainer.running import trainers_arguments

#: The file that names a folder's newest checkpoint, as upstream writes it.
_TRACKER: Final = "latest_checkpointed_iteration.txt"


def remember(receipt: str) -> None:
    """Put the receipt on the trainer's arguments; compare it with that of what the run will load.

    Outside upstream's trainer nothing happens: whoever saves there hands the receipt over.

    Args:
        receipt: The text of the run's receipt.

    Raises:
        Refusal: The checkpoint that the run is to load is another model's, or has an edited
            receipt. Nothing is loaded.
    """
    arguments = trainers_arguments()
    if arguments is None:
        return
    folder = resumed(arguments)
    if folder is not None:
        hold_checkpoint(folder, receipt)
    setattr(arguments, RECEIPT, receipt)


def resumed(arguments: Any) -> Path | None:
    """The checkpoint that a run with these arguments will load; None if there is none.

    As upstream picks it: ``--load``'s, by its tracker file or ``--ckpt-step``; where that folder
    has none, ``--pretrained-checkpoint``'s.
    """
    for name in ("load", "pretrained_checkpoint"):
        folder = getattr(arguments, name, None)
        if not folder:
            continue
        try:
            newest = read_file(Path(folder, _TRACKER), 100).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        step = getattr(arguments, "ckpt_step", None) if name == "load" else None
        if step is None and newest == "release":
            return Path(folder, "release")
        if step is not None or newest.isdecimal():
            return Path(folder, f"iter_{int(newest if step is None else step):07d}")
    return None
