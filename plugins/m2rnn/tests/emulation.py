"""The CUDA kernels on a CPU: compiled by its own compiler against ``emulated/emulated.cpp``."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from megatron_seams_m2rnn.ops.cuda.kernel import Kernel
from megatron_seams_m2rnn.ops.cuda.library import SOURCES, Call
from megatron_seams_m2rnn.ops.cuda.rule import Machine

SOURCE = Path(__file__).parent / "emulated" / "emulated.cpp"
#: An H100, but for how many blocks it runs at a time.
HOPPER = Machine(capability=90, multiprocessors=8, memory=233472, largest=232448)


class Emulator:
    """Launches kernels on the CPU, in the place of :func:`.library.launch`.

    Attributes:
        launched: The kernel and the number of blocks of each launch so far.
        seed: Draws the order in which threads take their turns.
    """

    def __init__(self, seed: int = 0) -> None:
        self.launched: list[tuple[Kernel, int]] = []
        self.seed = seed

    def launch(self, kernel: Kernel, call: Call, *, blocks: int, device: torch.device) -> None:
        """Run all blocks of a grid at a time."""
        del device
        self.launched.append((kernel, blocks))
        run = _built(kernel.name, kernel.options)
        fault = run(ctypes.byref(call), blocks, kernel.threads, kernel.shared, self.seed)
        assert not fault, fault.decode()


@functools.cache
def _built(name: str, options: tuple[str, ...]) -> Any:
    built = Path(tempfile.mkdtemp()) / "emulated.so"
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-w", f"-I{SOURCES}", *options),
            *(f'-DM2RNN_KERNEL="{name}.cuh"', f"-DM2RNN_NAME=m2rnn_{name}"),
            *(str(SOURCE), "-o", str(built)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    library = ctypes.CDLL(str(built))
    assert library.call_bytes() == ctypes.sizeof(Call)
    library.emulate.restype = ctypes.c_char_p
    return library.emulate
