"""A checkpoint is read as data: a function that somebody planted in it is named, and not called."""

import argparse
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from megatron_seams.errors import ReceiptUnreadable, Refusal
from megatron_seams.runtime.checkpoint import (
    RECEIPT,
    hold_checkpoint,
    saved_entries,
    saved_receipt,
)
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.data_only import data_only


class Planted:
    """An object that calls a function where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def state(**more: object) -> dict[str, object]:
    weight = ShardedTensor.from_rank_offsets("w", torch.ones(2))
    return {"w": weight, RECEIPT: "the text", **more}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as upstream saves one."""
    folder = tmp_path_factory.mktemp("sound")
    with cpu_world():
        dist_checkpointing.save(state(), str(folder))
    return folder


def test_what_upstream_saves_is_data(saved: Path) -> None:
    assert saved_receipt(saved) == "the text"
    assert [str(entry) for entry in saved_entries(saved).values()] == ["float32 [2]"]
    load = pickle.load
    with data_only(saved):
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert pickle.load is load


def test_a_checkpoint_of_the_older_format_has_the_receipt_in_its_arguments(tmp_path: Path) -> None:
    file, mark = tmp_path / "mp_rank_00" / "model_optim_rng.pt", tmp_path / "mark"
    file.parent.mkdir()
    ours = argparse.Namespace(**{RECEIPT: "the text"})
    random_states = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),  # what upstream saves
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {},
    }
    torch.save({"args": ours, "model": {"w": torch.ones(2)}, "rng_state": [random_states]}, file)
    assert saved_receipt(tmp_path) == "the text"
    torch.save({"args": argparse.Namespace(), "model": {}}, file)
    assert saved_receipt(tmp_path) is None
    torch.save({"args": ours, "planted": Planted(mark)}, file)
    with pytest.raises(Refusal) as refused:
        hold_checkpoint(tmp_path, "the text")
    assert [type(reason) for reason in refused.value.reasons] == [ReceiptUnreadable]
    file.write_bytes(b"cut off")
    with pytest.raises(Refusal):
        hold_checkpoint(tmp_path, "the text")
    assert not mark.exists()


class Called:
    """An object that makes an optimizer where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return torch.optim.AdamW, ([],)


class Own:
    """A class of somebody's trainer, an object of which is among its arguments."""


def test_the_classes_of_an_offloaded_optimizer_are_read_and_never_called(tmp_path: Path) -> None:
    # As upstream's HybridDeviceOptimizer has them in its groups.
    group = {"cpu_optimizer_cls": torch.optim.AdamW, "gpu_optimizer_cls": torch.optim.SGD}
    optimizer = {"param_groups": [group | {"lr": 1.0, "made": Called()}]}
    with cpu_world():
        dist_checkpointing.save(state(optimizer=optimizer), str(tmp_path))
    assert saved_receipt(tmp_path) == "the text"
    # torch refuses an optimizer of no parameters, if it is made.
    with cpu_world(), pytest.raises(BaseException, match="empty parameter list"):
        dist_checkpointing.load_common_state_dict(str(tmp_path))
    with cpu_world(), data_only(tmp_path):
        common = dist_checkpointing.load_common_state_dict(str(tmp_path))
    assert common["optimizer"]["param_groups"][0]["lr"] == 1.0


def test_a_class_that_the_trainer_registers_is_read(tmp_path: Path) -> None:
    with cpu_world():
        dist_checkpointing.save(state(args=Own()), str(tmp_path))
    with pytest.raises(Refusal, match=r"SEAM-V01[\s\S]*add_safe_globals"):
        hold_checkpoint(tmp_path, "the text")
    with torch.serialization.safe_globals([Own]):
        assert saved_receipt(tmp_path) == "the text"


def test_planted_metadata_is_named_and_not_run(saved: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "mark"
    shutil.copytree(saved, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(mark)))
    for read in (saved_receipt, saved_entries):
        with pytest.raises(pickle.UnpicklingError, match=r"it names posix\.mkdir"):
            read(folder)
    with pytest.raises(Refusal) as refused:
        hold_checkpoint(folder, "the text")
    assert [type(reason) for reason in refused.value.reasons] == [ReceiptUnreadable]
    assert not mark.exists()


def test_a_planted_object_is_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "mark"
    folder.mkdir()
    key = ("o", (1,), (0,))
    with cpu_world():
        planted = ShardedObject("o", Planted(mark), *key[1:])
        dist_checkpointing.save(state(common=Planted(mark), o=planted), str(folder))
    assert not mark.exists()
    with pytest.raises(Refusal):
        hold_checkpoint(folder, "the text")
    with cpu_world(), data_only(folder), pytest.raises(BaseException, match="mkdir"):
        dist_checkpointing.load(state(o=ShardedObject("o", None, *key[1:])), str(folder))
    assert not mark.exists()
