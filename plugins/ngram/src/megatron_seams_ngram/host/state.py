"""The moments of rows on the host in checkpoints, under the keys of resident rows' moments."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from megatron_seams.runtime.checkpoint import saved_entries
from megatron_seams.runtime.data_only import data_only
from megatron_seams.runtime.trainer.remember import resumed
from megatron_seams.runtime.trainer.running import trainers_arguments
from megatron_seams_ngram.host.rule import MOMENTS
from megatron_seams_ngram.host.stepped import Stepped

_LOG: Final = logging.getLogger(__name__)
#: The key of the rows' state beside the native optimizers', or in the first one's of several.
ROWS: Final = "host_rows"
_STEP: Final = "host_step"
#: Torch's name of a distributed checkpoint's metadata; the older format has none.
_METADATA: Final = ".metadata"
#: Upstream's names of an optimizer's copy of a parameter: a distributed one's, and that of one for
#: parameters of 16 bits.
COPIES: Final = ("param", "fp32_param")


def sharded_state(tables: Iterable[tuple[Stepped, str | None]], model: Any) -> dict[str, Any]:
    """Describe the moments to Megatron's checkpoints.

    Args:
        tables: Of one model; each with the name under which the rows are to be there once more, as
            an optimizer's copy of them, or None.
        model: The model's sharded state dict.

    Returns:
        Key of the rows -> moment -> sharded tensor, and one of the number of steps: common state is
        that of rank 0, and a pipeline stage without tables would have another.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    rows = {id(one.host.weight): (one.host, copy) for one, copy in tables}
    found: dict[str, Any] = {}
    for entry in nested_values(model):
        here = rows.get(id(getattr(entry, "data", None)))
        if not isinstance(entry, ShardedTensor) or here is None:
            continue
        host, copy = here
        rule = host.rule
        if rule is not None and rule.moments and rule.steps:
            tensors = {**rule.moments, **({copy: host.weight} if copy else {})}
            found[entry.key] = {name: _like(entry, name, one) for name, one in tensors.items()}
            part = entry.global_offset[0] // len(host.weight)  # every part has the same number
            found[entry.key][_STEP] = ShardedTensor.from_rank_offsets(
                _key(_STEP, entry.key),
                torch.tensor([rule.steps]),
                replica_id=(0, part, entry.replica_id[-1]),
            )
    return found


def resume(tables: Stepped) -> None:
    """Under upstream's trainer, load the moments from the checkpoint that the run has resumed.

    Upstream loads before anything can tell it of the rows' moments, so that they are read here, and
    only where the checkpoint has them: one of resident rows has, under the same keys, and if its
    optimizer was distributed only in the format that moves between layouts.
    """
    arguments = trainers_arguments()
    folder = None if arguments is None else resumed(arguments)
    if folder is None or folder.name == "release":  # of which upstream loads no optimizer
        return
    if any(getattr(arguments, name, False) for name in ("finetune", "no_load_optim")):
        return
    rule = tables.host.rule
    if not load_moments(tables, folder) and rule is not None and rule.moments:
        _LOG.warning(
            "checkpoint %s has no moments of the rows of %s, which begin at zero",
            folder,
            tables.seam,
        )


def load_moments(tables: Stepped, folder: Path) -> bool:
    """Load the moments of the rows from a checkpoint.

    Of resident rows of 16 bits it may have a copy in float32, which then becomes the rows. A rank
    reads by itself: pipeline stages without tables would miss a collective.

    Args:
        tables: Already described by its model's ``sharded_state_dict``, and with a rule.
        folder: The checkpoint.

    Returns:
        Whether the checkpoint has them, which one of the older format has not; nothing is loaded
        otherwise.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    host = tables.host
    described: dict[str, Any] = {}
    if tables.prefix is not None:
        described = tables.sharded_state_dict(tables.prefix)
    found = [
        one
        for one in described.values()
        if isinstance(one, ShardedTensor) and one.data is host.weight
    ]
    if host.rule is None or not host.rule.moments or not found:
        return False
    if not (folder / _METADATA).exists():
        return False
    (entry,) = found
    shape = tuple(entry.global_shape)
    entries = saved_entries(folder)
    keys = {name: _key(name, entry.key) for name in MOMENTS}
    if any(key not in entries or entries[key].shape != shape for key in keys.values()):
        return False
    places = dict(zip(keys.values(), host.rule.moments.values(), strict=True))
    copies = [_key(name, entry.key) for name in COPIES]
    copy = next((key for key in copies if key in entries and entries[key].shape == shape), None)
    if copy is not None:
        places[copy] = host.weight
    # Whole, since torch's own reader cuts a plain tensor at no place.
    whole = {
        key: place if shape == tuple(place.shape) else place.new_empty(shape)
        for key, place in places.items()
    }
    steps = torch.zeros(1, dtype=torch.int64)
    own_steps = _key(_STEP, entry.key) in entries
    if own_steps:
        whole[_key(_STEP, entry.key)] = steps
    with data_only(folder):
        common = dist_checkpointing.load_common_state_dict(str(folder))
        load(whole, storage_reader=FileSystemReader(str(folder)), no_dist=True)
    first = entry.global_offset[0]
    own = {key: whole[key][first : first + len(host.weight)] for key in places}
    if copy is not None:
        host.weight.copy_(own[copy])  # nothing where it was read into its place
        host.forget()
    loaded = {name: own[key] for name, key in keys.items()}
    native = common.get("optimizer", {})
    host.rule.resume(loaded, int(steps) if own_steps else _found_step(native) or 0)
    return True


def _like(entry: Any, name: str, moment: Tensor) -> Any:
    return replace(entry, key=_key(name, entry.key), data=moment, dtype=moment.dtype)


def _key(name: str, key: str) -> str:
    return f"optimizer.state.{name}.{key}"


def _found_step(state: Any) -> int | None:
    """How many steps resident rows' optimizer took, as upstream saves it.

    It is in a group with some optimizers, and beside the state with others.
    """
    if not isinstance(state, dict):
        return None
    for name in ("common_step", "step"):
        if name in state:
            return int(state[name])
    inside = [*state.values(), *state.get("param_groups", [])]
    return next((step for one in inside if (step := _found_step(one)) is not None), None)
