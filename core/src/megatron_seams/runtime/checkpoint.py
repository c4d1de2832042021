"""Checkpoints through upstream's distributed checkpointing: save, load, and list their keys."""

import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factories,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_seams.errors import ReceiptUnreadable, Refusal
from megatron_seams.records.held import held, software_differences
from megatron_seams.runtime.data_only import data_only

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel

_LOG: Final = logging.getLogger(__name__)
#: A rank's file in a checkpoint of ``--ckpt-format torch``, with the trainer's arguments in it.
_OLDER: Final = "mp_rank_*/model_optim_rng.pt"
#: The key of the receipt: common state beside the sharded tensors, never a key of the model.
RECEIPT: Final = "megatron_seams_receipt"


@attrs.frozen(kw_only=True)
class Entry:
    """The shape and type of a checkpoint's value under one key.

    Attributes:
        shape: The global shape; None for an object that is no tensor.
        dtype: The tensor's type, ``float32``; None for an object.
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        """``float32 [64, 128]``, or ``an object``."""
        return f"{self.dtype} {list(self.shape)}" if self.shape is not None else "an object"


def save_checkpoint(model: "HybridModel", receipt: str, folder: Path) -> None:
    """Save a model with its receipt as common state.

    Args:
        model: Not wrapped; all its ranks call this.
        receipt: The receipt's text.
        folder: Exists and is empty.
    """
    dist_checkpointing.save({**model.sharded_state_dict(), RECEIPT: receipt}, str(folder))


def load_checkpoint(model: "HybridModel", folder: Path, receipt: str | None = None) -> None:
    """Load a checkpoint strictly: every key of the model from the file, none left over.

    Args:
        model: Not wrapped; all its ranks call this.
        folder: The checkpoint.
        receipt: The text of the run's receipt, which the checkpoint's is compared with before
            anything is loaded; None compares nothing.

    Raises:
        Refusal: With every difference between the two receipts (:func:`hold_checkpoint`).
        pickle.UnpicklingError: It holds something else than data; nothing of it was run.
        RuntimeError: The loaded keys are not the model's (torch's own message).
        megatron.core.dist_checkpointing.core.CheckpointingException: A key is not in the file, or
            has another shape there.
    """
    if receipt is not None:
        hold_checkpoint(folder, receipt)
    with data_only(folder):
        loaded = dist_checkpointing.load(model.sharded_state_dict(), str(folder))
    # Common state comes back whole; what is not the model's would fail the strict load.
    loaded.pop(RECEIPT, None)
    model.load_state_dict(loaded, strict=True)


def hold_checkpoint(folder: Path, receipt: str) -> None:
    """Compare the receipt in a checkpoint with a run's; warn of a checkpoint without one.

    Raises:
        Refusal: With every difference, unless the run's receipt accepts them on the record; with a
            :class:`ReceiptUnreadable` for a receipt that was edited, or a checkpoint that holds
            something else than data.
    """
    try:
        saved = saved_receipt(folder)
    except pickle.UnpicklingError as error:
        raise Refusal([_no_data(folder, error)]) from error
    if saved is None:
        _LOG.warning(
            "checkpoint %s has no receipt: what built its layers is not known, and is not checked",
            folder,
        )
        return
    try:
        faults = held(saved, receipt, str(folder))
    except ReceiptUnreadable as unreadable:
        faults = (unreadable,)
    if faults:
        raise Refusal(faults)
    for name, (was, now) in software_differences(saved, receipt).items():
        _LOG.warning("checkpoint %s was written with %s %s; here it is %s", folder, name, was, now)


def _no_data(folder: Path, error: pickle.UnpicklingError) -> ReceiptUnreadable:
    return ReceiptUnreadable(
        asked=f"the receipt in checkpoint {folder}",
        found=f"its common state holds something else than data: {error!s:.300}",
        next="ask whoever wrote it what it is; nothing of it was run. A class of your own "
        "trainer's is read once the trainer registers it, before it builds the model: "
        "torch.serialization.add_safe_globals([...])",
        file=str(folder),
    )


def saved_receipt(folder: Path) -> str | None:
    """The text of the receipt in a checkpoint; None if there is none.

    It stands beside the model's state, or on the arguments that upstream's trainer saves.

    Raises:
        pickle.UnpicklingError: It holds something else than data; nothing of it was run.
    """
    older = sorted(folder.glob(_OLDER))
    with data_only(folder):
        if older:
            common = _read(older[0])
        else:
            common = dist_checkpointing.load_common_state_dict(str(folder))
    receipt = common.get(RECEIPT, getattr(common.get("args"), RECEIPT, None))
    return receipt if isinstance(receipt, str) else None


def _read(file: Path) -> Any:
    """The state in a file of the older format; its tensors stay on disk until they are looked at.

    Raises:
        pickle.UnpicklingError: It holds something else than data; nothing of it was run.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        raise pickle.UnpicklingError(str(error)) from error
    return state if isinstance(state, dict) else {}


def saved_entries(folder: Path) -> dict[str, Entry]:
    """Key -> entry of a checkpoint on disk, by torch's own reader of its format.

    Upstream's ``load_tensors_metadata`` hands torch's tensor properties on to ``torch.empty``,
    which fails since those have strides.

    Raises:
        pickle.UnpicklingError: It holds something else than data; nothing of it was run.
    """
    with data_only(folder):
        metadata = FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    return {
        key: Entry(shape=tuple(part.size), dtype=_name(part.properties.dtype))
        if isinstance(part, TensorStorageMetadata)
        else Entry()
        for key, part in metadata.items()
        # Common state is a file of its own until 0.18, and an object among the others since 0.19.
        if key.partition("/")[0] != "common_state"
    }


def model_entries(model: "HybridModel") -> dict[str, Entry]:
    """Key -> entry of the checkpoint that a model would be saved to."""
    state = model.sharded_state_dict()
    apply_factories(state)
    entries: dict[str, Entry] = {}
    for part in nested_values(state):
        if isinstance(part, ShardedTensor):
            entries[part.key] = Entry(shape=tuple(part.global_shape), dtype=_name(part.dtype))
        elif isinstance(part, ShardedObject):
            entries[part.unique_key] = Entry()
    return entries


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix(f"{torch.__name__}.")
