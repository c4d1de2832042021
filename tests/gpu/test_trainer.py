"""Upstream's pretrain_hybrid.py with the arguments that ``registry args`` prints.

Needs a Megatron-LM checkout first on PYTHONPATH: the published wheel lacks the Makefile of its
dataset helpers. ``MEGATRON_LM`` names its folder.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.megatron]

RECIPE = Path(__file__).parent / "drn.toml"
STEPS, HALF = 20, 10
#: All that is added to the printed arguments: data, tokenizer, batch, optimizer, and where to save.
ADDED = f"""
--mock-data --tokenizer-type NullTokenizer --vocab-size 8192
--micro-batch-size 4 --global-batch-size 4 --seq-length 512
--train-iters {STEPS} --lr 1e-3 --lr-decay-style constant --clip-grad 1.0
--log-interval 1 --eval-iters 0 --save-interval {HALF}
""".split()


def registry(*words):
    command = [sys.executable, "-m", "megatron_seams", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def train(receipt, folder, *further, environment=()):
    """Run the trainer; the loss of each iteration, and everything that was printed."""
    checkout = Path(os.environ["MEGATRON_LM"])
    words = [word for line in registry("args", RECIPE).splitlines() for word in line.split()]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"),
        *(str(checkout / "pretrain_hybrid.py"), *words, *ADDED),
        *("--save", str(folder), "--load", str(folder), *further),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"MEGATRON_SEAMS_RECEIPT": str(receipt)} | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=checkout,
        check=False,
        timeout=400,
    )
    (folder.parent / f"{folder.name}.log").write_text(done.stdout)
    found = re.findall(r"iteration +(\d+)/.*?lm loss: ([0-9.E+-]+|nan|inf)", done.stdout)
    return {int(step): text for step, text in found}, done


def said(done):
    """The end of what was printed, for a failure."""
    return done.stdout[-6000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if "MEGATRON_LM" not in os.environ:
        pytest.skip("MEGATRON_LM names no checkout of Megatron-LM")
    folder = tmp_path_factory.mktemp("trainer")
    receipt = folder / "receipt.json"
    registry("resolve", RECIPE, "--receipt", receipt)
    losses, done = train(receipt, folder / "run")
    print("losses", losses)
    assert done.returncode == 0, said(done)
    return folder, receipt, losses


def test_twenty_iterations_train_with_the_printed_arguments(trained):
    _, _, losses = trained
    values = [float(losses[step]) for step in range(1, STEPS + 1)]
    assert all(0 < value < 20 for value in values), values
    assert values[-1] < values[0] - 0.5, values


def test_the_checkpoint_has_the_receipt(trained):
    from megatron_seams.runtime.checkpoint import saved_receipt

    folder, receipt, _ = trained
    for step in (HALF, STEPS):
        saved = saved_receipt(folder / "run" / f"iter_{step:07d}")
        assert saved == receipt.read_text(), "not the run's receipt"


def test_another_models_checkpoint_is_refused_and_nothing_is_loaded(trained):
    folder = trained[0]
    other = folder / "other.json"
    recipe = folder / "other.toml"
    recipe.write_text(RECIPE.read_text().replace("table-rows = 8192", "table-rows = 4096"))
    registry("resolve", recipe, "--receipt", other)
    losses, done = train(other, folder / "run")
    assert done.returncode != 0
    assert losses == {}
    assert "SEAM-V05" in done.stdout
    assert done.stdout.count("[SEAM-V05]") == 1, "printed more than once"


def test_a_resumed_run_takes_the_same_steps(trained):
    """With upstream's deterministic mode: printed losses equal, final weights bit for bit."""
    folder, receipt, _ = trained
    mode = ("--deterministic-mode",)
    losses, done = train(receipt, folder / "first", *mode)
    assert done.returncode == 0, said(done)
    again = folder / "again"
    shutil.copytree(folder / "first" / f"iter_{HALF:07d}", again / f"iter_{HALF:07d}")
    (again / "latest_checkpointed_iteration.txt").write_text(str(HALF))
    resumed, done = train(receipt, again, *mode)
    print("resumed", resumed)
    assert done.returncode == 0, said(done)
    compared, unequal = differing(folder / "first", again)
    print(f"{compared} tensors compared, {len(unequal)} differ {unequal[:5]}")
    later = range(HALF + 1, STEPS + 1)
    assert {step: resumed.get(step) for step in later} == {step: losses[step] for step in later}
    assert unequal == []


def differing(*runs):
    """How many tensors the last checkpoints of two runs have, and those that are not equal."""
    import torch
    import torch.distributed.checkpoint as dcp

    unequal, compared = [], 0
    last = [run / f"iter_{STEPS:07d}" for run in runs]
    whole = dcp.FileSystemReader(last[0]).read_metadata().state_dict_metadata
    for key, part in whole.items():
        if not isinstance(part, dcp.metadata.TensorStorageMetadata):
            continue
        tensors = []
        for folder in last:
            state = {key: torch.empty(part.size, dtype=part.properties.dtype)}
            dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
            tensors.append(state[key])
        compared += 1
        if not torch.equal(*tensors):
            unequal.append(key)
    return compared, unequal
