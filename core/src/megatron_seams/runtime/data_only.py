"""Checkpoints are data: reading one runs nothing that is in it.

A checkpoint's metadata, and the objects beside its tensors, are pickles: whoever wrote them could
name any function, which an unrestricted reader would call. torch and Megatron read some of them so.
"""

import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch.distributed.checkpoint.api import CheckpointException

#: Module -> the names in it that the metadata of a checkpoint is made of: classes of plain values.
_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "builtins": frozenset({"bytearray", "complex", "frozenset", "range", "set", "slice"}),
    "collections": frozenset({"OrderedDict"}),
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
            *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        }
    ),
    "torch.distributed.checkpoint.planner": frozenset(
        {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}
    ),
}
#: Classes that upstream writes beside the tensors: an optimizer that is offloaded to the host has
#: the classes of its parts among its settings.
_OPTIMIZERS: Final = (
    *("torch.optim.adam.Adam", "torch.optim.adamw.AdamW", "torch.optim.sgd.SGD"),
    "transformer_engine.pytorch.optimizers.fused_adam.FusedAdam",
    "transformer_engine.pytorch.optimizers.fused_sgd.FusedSGD",
    *("apex.optimizers.fused_adam.FusedAdam", "apex.optimizers.fused_sgd.FusedSGD"),
)
_FORCE: Final = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT: Final = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class _Unpickler(pickle.Unpickler):
    """An unpickler of a checkpoint's metadata, and of nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = global_name in _NAMES.get(module_name, ())
        dtype = module_name == "torch" and isinstance(
            getattr(torch, global_name, None), torch.dtype
        )
        if not known and not dtype:
            message = f"it names {module_name}.{global_name}, which no metadata is made of"
            raise pickle.UnpicklingError(message)
        return super().find_class(module_name, global_name)


class _Named:
    """Stands for a class that a checkpoint names: it does nothing, whatever is asked of it."""

    def __new__(cls, *_: Any, **__: Any) -> "_Named":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


@contextlib.contextmanager
def data_only(folder: Path) -> Iterator[None]:
    """Within the block, neither torch nor Megatron makes more of a checkpoint than data.

    torch's own loader is told to read weights only, by the variable that overrules its callers; the
    metadata, which torch reads without it, is read by a restricted unpickler. Both hold for the
    whole process, so that no other thread should load pickles meanwhile. Beside plain values it
    takes the classes that Megatron registers with torch (``torch.serialization``), those that the
    trainer does, and optimizers by their names.

    Args:
        folder: The checkpoint; its metadata is looked at before the block.

    Raises:
        pickle.UnpicklingError: It names something else; nothing of it was run.
    """
    for file in sorted(folder.glob("*.metadata")):
        with file.open("rb") as stream:
            _load(stream)
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    load = pickle.load
    os.environ[_FORCE] = "1"
    pickle.load = _load  # type: ignore[assignment]  # it is called with a file alone
    try:
        with torch.serialization.safe_globals([(_Named, name) for name in _OPTIMIZERS]):
            yield
    except CheckpointException as error:
        # torch's own of a load that failed on some rank, which is no Exception.
        for wrapped in error.failures.values():
            if isinstance(wrapped[0], pickle.UnpicklingError):
                raise pickle.UnpicklingError(str(wrapped[0])) from error
        raise
    finally:
        pickle.load = load
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _load(file: IO[bytes], **_: Any) -> Any:
    return _Unpickler(file).load()
