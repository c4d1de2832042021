"""Upstream's trainer by a receipt: what ``benchmarks/gpu/trainer.py`` prints, each row a check.

Needs a Megatron-LM checkout, which ``MEGATRON_LM`` names: the published wheel lacks the Makefile of
its dataset helpers.
"""

import os
from pathlib import Path

import pytest

from trainer_host import HOST_RECIPE, hosted
from trainer_runs import Trainer
from trainer_tables import drills, layouts, single

pytestmark = [pytest.mark.megatron, pytest.mark.fresh_ranks]


def trainer(folder, gpus):
    """The trainer of the checkout; skips where there are fewer GPUs."""
    import torch

    if torch.cuda.device_count() < gpus:
        pytest.skip(f"not {gpus} GPUs")
    if "MEGATRON_LM" not in os.environ:
        pytest.skip("MEGATRON_LM names no checkout of Megatron-LM")
    return Trainer(checkout=Path(os.environ["MEGATRON_LM"]), folder=folder)


def hold(rows):
    failed = []
    for row in rows:
        print(row, flush=True)
        if not row.holds:
            failed.append(str(row))
    assert not failed, "\n".join(failed)


def test_the_printed_command_trains_saves_and_resumes(tmp_path):
    hold(single(trainer(tmp_path, 1)))


def test_layouts_of_two_gpus_have_the_losses_of_one(tmp_path):
    hold(layouts(trainer(tmp_path, 2)))


def test_an_odd_rank_stops_both(tmp_path):
    hold(drills(trainer(tmp_path, 2), None))


def test_tables_on_the_host_train_save_and_resume(tmp_path):
    hold(hosted(trainer(tmp_path, 1)))


def test_layouts_of_two_gpus_have_the_losses_of_one_with_tables_on_the_host(tmp_path):
    hold(layouts(trainer(tmp_path, 2), base=HOST_RECIPE))
