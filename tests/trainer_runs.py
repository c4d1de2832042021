"""Upstream's pretrain_hybrid.py under torchrun: what a run is given, and what it prints.

The trainer comes from a checkout of Megatron-LM, the published wheel having no Makefile for its
dataset helpers; the checkout goes first on PYTHONPATH, and receipts are made with it there.
"""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

STEPS: Final = 20
HALF: Final = 10
#: All that is added to the arguments that ``registry args`` prints: data, tokenizer, batch,
#: optimizer, and how often to evaluate and save.
ADDED: Final = tuple(
    f"""
    --mock-data --tokenizer-type NullTokenizer --vocab-size 8192
    --micro-batch-size 2 --global-batch-size 4 --seq-length 512
    --train-iters {STEPS} --lr 1e-3 --lr-decay-style constant
    --log-interval 1 --eval-iters 0 --eval-interval 1000 --save-interval {HALF}
    """.split()
)
#: Upstream's optimizer states in a form that moves between layouts.
MOVABLE: Final = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
#: A checkpoint's weights and iteration, without the optimizer's states.
FRESH: Final = ("--no-load-optim",)
#: A program: for each checkpoint and receipt after it, whether the one carries the other.
_CARRY: Final = """\
import sys, pathlib
from megatron_seams.runtime.checkpoint import saved_receipt
for checkpoint, receipt in zip(*[iter(map(pathlib.Path, sys.argv[1:]))] * 2):
    print(saved_receipt(checkpoint) == receipt.read_text(encoding="utf-8"))
"""
#: Upstream wants it under tensor and sequence parallelism.
_ENVIRONMENT: Final = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONUNBUFFERED": "1"}


@attrs.frozen(kw_only=True)
class Ran:
    """A run that has ended.

    Attributes:
        code: The launcher's exit code; None where it took too long and was stopped.
        losses: Iteration -> its loss, to the six decimals that are printed.
        text: Everything that was printed.
        seconds: From launch to end.
    """

    code: int | None
    losses: Mapping[int, float]
    text: str
    seconds: float

    def floats(self, first: int = 1) -> list[float]:
        """The losses from an iteration to the last one; NaN for one that was not printed."""
        return [self.losses.get(step, math.nan) for step in range(first, STEPS + 1)]

    def why(self) -> str:
        """The line that says why it failed: a refusal's first, or the last error's."""
        found = re.findall(r"^.*(?:\[SEAM-|Error: |Error\b).*$", self.text, re.MULTILINE)
        lines = [line for line in found if "ChildFailedError" not in line]
        return (lines or ["no output"])[0].strip()[:200]


@attrs.frozen(kw_only=True)
class Trainer:
    """The trainer of a checkout.

    Attributes:
        checkout: The folder of Megatron-LM.
        folder: Where recipes, receipts, checkpoints and logs go.
        limit: Seconds after which a run is stopped.
        first: Folders that go before the checkout on the path.
    """

    checkout: Path
    folder: Path
    limit: float = 300.0
    first: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with the checkout first on the path."""
        places = [*self.first, self.checkout, os.environ.get("PYTHONPATH")]
        path = [str(place) for place in places if place]
        return os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path)}

    def registry(self, *words: object) -> str:
        """The output of a command of ``registry``."""
        command = [sys.executable, "-m", "megatron_seams", *map(str, words)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{command}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def prepare(self, name: str, recipe: str) -> Path:
        """Write a recipe and its receipt.

        Args:
            name: Of the files.
            recipe: The recipe's text.

        Returns:
            The recipe's file; the receipt is beside it.
        """
        file = self.folder / f"{name}.toml"
        file.write_text(recipe)
        self.registry("resolve", file, "--receipt", file.with_suffix(".json"))
        return file

    def command(self, recipe: Path, *further: str, ranks: int = 1) -> list[str]:
        """The command, with the arguments of a recipe as ``registry args`` prints them."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={ranks}", str(self.checkout / "pretrain_hybrid.py")),
            *shlex.split(self.registry("args", recipe)),
            *ADDED,
            *further,
        ]

    def train(
        self,
        name: str,
        recipe: Path,
        *further: str,
        ranks: int = 1,
        source: str | None = None,
        gpu: int | None = None,
    ) -> Ran:
        """Run the trainer to its end.

        Args:
            name: Of the run: its checkpoints go to ``folder / name``, its output to ``name.log``.
            recipe: A recipe with its receipt beside it.
            *further: More arguments.
            ranks: The number of GPUs.
            source: The run whose checkpoint of iteration :data:`HALF` it begins with, if any.
            gpu: The only GPU that it sees.
        """
        home = self.folder / name
        home.mkdir(exist_ok=True)
        if source is not None:
            step = f"iter_{HALF:07d}"
            shutil.copytree(self.folder / source / step, home / step, copy_function=os.link)
            (home / "latest_checkpointed_iteration.txt").write_text(str(HALF))
        places = ("--save", str(home), "--load", str(home))
        return self.run(
            name,
            self.command(recipe, *places, *further, ranks=ranks),
            {"MEGATRON_SEAMS_RECEIPT": str(recipe.with_suffix(".json"))}
            | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}),
        )

    def run(self, name: str, command: list[str], environment: Mapping[str, str]) -> Ran:
        """Run a command to its end, or until its time is over; its output goes to ``name.log``."""
        log = self.folder / f"{name}.log"
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env=self.environment | dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
            try:
                code: int | None = process.wait(self.limit)
            except subprocess.TimeoutExpired:
                code = None
                _stop(process)
        text = log.read_text(errors="replace")
        return Ran(
            code=code,
            losses=read_losses(text),
            text=text,
            seconds=time.monotonic() - started,
        )

    def carry(self, receipts: Mapping[Path, Path]) -> list[bool]:
        """Whether checkpoints carry receipts, each a checkpoint's folder -> the receipt's file."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                _CARRY,
                *(str(file) for pair in receipts.items() for file in pair),
            ],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
        )
        return [word == "True" for word in done.stdout.split()[-len(receipts) :]]

    def checkpoint(self, name: str, step: int = STEPS) -> Path:
        """The folder of a run's checkpoint."""
        return self.folder / name / f"iter_{step:07d}"


def read_losses(text: str) -> dict[int, float]:
    """Iteration -> loss, from what the trainer printed.

    Upstream keeps the first iteration's loss in its sum, so that the second line of a run, resumed
    ones too, has the mean of two.
    """
    found = re.findall(r"iteration +(\d+)/.*?lm loss: ([0-9.E+-]+|nan|inf)", text)
    losses = {int(step): float(loss) for step, loss in found}
    first, second, *_ = [*losses, None, None]
    if first is not None and second is not None:
        losses[second] = round(2 * losses[second] - losses[first], 6)
    return losses


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a launcher, which ends its ranks when it is asked to end itself."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def differing(first: Path, second: Path) -> tuple[int, list[str]]:
    """How many tensors two checkpoints have, optimizer's too, and those that are not equal."""
    import torch
    import torch.distributed.checkpoint as dcp

    def read(folder: Path) -> dict[str, Any]:
        reader = dcp.FileSystemReader(folder)
        state = {
            key: torch.empty(part.size, dtype=part.properties.dtype)
            for key, part in reader.read_metadata().state_dict_metadata.items()
            if isinstance(part, dcp.metadata.TensorStorageMetadata)
        }
        dcp.load(state, storage_reader=reader, no_dist=True)
        return state

    one, other = read(first), read(second)
    unequal = sorted(one.keys() ^ other.keys())
    unequal += [key for key in one.keys() & other.keys() if not torch.equal(one[key], other[key])]
    return len(one), unequal
