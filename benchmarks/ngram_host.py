"""Tables on the host beside resident ones: ``python benchmarks/ngram_host.py [--rows N] ...``.

A stack of dense layers with the hashed n-gram embedding at its input takes steps of Adam: forward,
backward and update, of 2 x 4096 tokens. The tables have 10^8 rows in all. The ways:

- ``resident``: the rows are a parameter on the device, and Adam updates all of them;
- ``host``: ``tables = "host"``; the ids are read from the device;
- ``host, all rows``: with ``host-updates = "all"``, where Adam updates all of them there;
- on a GPU, ``host, ids guessed``: the rows of the next batch are fetched ahead, by the host's ids;
- on a GPU, ``host, batch guessed``: likewise, and the forward gets tensors that it knows.

On a CPU nothing runs beside the model that could fetch ahead. First the numbers are checked: some
steps of a small case with resident tables and on the host; it exits with 1 if they differ.

Each way has a process of its own, and all take turns, so that a busy moment slows all alike: take
the ratios. ``device MiB`` is on a GPU the peak that torch allocated there, less what the same step
takes without the feature; on a CPU, which is its own device, it is what would lie there, by the
sizes of the tensors: resident rows, their gradient and moments, or the rows that were moved, their
places and gradient. ``host MiB`` is the growth of the process's peak, which is why the default
width is small: all processes together stay below 12 GiB on a CPU.
"""

import argparse
import gc
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn

from megatron_seams_ngram.hash.module import HashedNgramEmbedding
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.host.ahead import fetch_ahead
from megatron_seams_ngram.host.tables import HostNgramTables

BATCH, LENGTH, VOCABULARY, HEADS = 2, 4096, 131_072, 8
#: Hidden size and layers of the rest of the model, by device.
SIZES: Final = {"cpu": (64, 1), "cuda": (2048, 12)}
WAYS: Final = {
    "cpu": ("resident", "host", "host, all rows"),
    "cuda": ("resident", "host", "host, all rows", "host, ids guessed", "host, batch guessed"),
}
#: The most that losses may differ, relatively.
BAR: Final = 1e-6
MIB: Final = 2**20


def ngram(
    device: str, place: str, rows: int, width: int, hidden: int, *, every: bool = False
) -> HashedNgramEmbedding:
    """The embedding, with nothing at zero."""
    module = HashedNgramEmbedding(
        Options(
            table_rows=rows // (2 * HEADS),
            width=width,
            heads=HEADS,
            tables=place,
            host_updates="all" if every else "touched",
        ),
        hidden_size=hidden,
        vocab_size=VOCABULARY,
        packed_sequences=False,
        init_std=0.02,
        dtype=torch.float32,
        use_cpu_initialization=device == "cpu",
        tp_group=None,
        reduce_scatter_embeddings=False,
        config=SimpleNamespace(),
    )
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(module.projection.shape, generator=generator) / 50
    with torch.no_grad():
        module.projection.copy_(weights)
    return module


def difference(device: str) -> float:
    """The largest relative difference of losses between resident tables and those on the host."""
    losses = {}
    for place in ("device", "host"):
        module = ngram(device, place, 100_000, 16, 64)
        optimizer = torch.optim.SGD(module.parameters(), lr=50.0)
        batches = Way.batches()[:4]
        given = [ids.to(device) for ids in batches]
        losses[place] = []
        for step in range(12):
            if step % 3 == 1:  # the right guess
                fetch_ahead(module, batches[step % 4], given=(given[step % 4], None))
            elif step % 3 == 2:  # a wrong one
                fetch_ahead(module, batches[(step + 1) % 4])
            loss = (module(given[step % 4]) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[place].append(float(loss.detach()))
    pairs = zip(losses["device"], losses["host"], strict=True)
    return max(abs(one - other) / abs(one) for one, other in pairs)


class Stack(nn.Module):
    """Dense layers, with the n-gram embedding at the input where it is wanted."""

    def __init__(
        self, device: str, place: str | None, *, rows: int, width: int, every: bool = False
    ) -> None:
        super().__init__()
        hidden, layers = SIZES[device]
        self.type = torch.bfloat16 if device == "cuda" else torch.float32
        self.ngram = (
            None if place is None else ngram(device, place, rows, width, hidden, every=every)
        )
        placed: dict[str, Any] = {"device": device, "dtype": self.type}
        self.words = nn.Embedding(VOCABULARY // 16, hidden, **placed)
        blocks = [
            nn.Sequential(
                nn.LayerNorm(hidden, **placed),
                nn.Linear(hidden, 4 * hidden, **placed),
                nn.GELU(),
                nn.Linear(4 * hidden, hidden, **placed),
            )
            for _ in range(layers)
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, ids: Tensor) -> Tensor:
        """The mean square of what comes out."""
        x = self.words(ids % self.words.num_embeddings)
        if self.ngram is not None:
            x = x + self.ngram(ids).to(self.type)
        for block in self.blocks:
            x = x + block(x)
        return x.float().square().mean()


class Way:
    """One way to train the stack."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.name, self.device = name, asked.device
        place = {"resident": "device", "nothing": None}.get(name, "host")
        every = name == "host, all rows"
        self.model = Stack(asked.device, place, rows=asked.rows, width=asked.width, every=every)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-3, fused=True if asked.device == "cuda" else None
        )
        self.ids = self.batches()
        self.given = [ids.to(asked.device) for ids in self.ids]
        self.at = 0
        if asked.device == "cuda":
            torch.cuda.synchronize()

    @staticmethod
    def batches() -> list[Tensor]:
        """Token ids of 16 batches, on the host."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator) for _ in range(16)]

    def step(self) -> None:
        """Take one step."""
        at, following = self.at % 16, (self.at + 1) % 16
        self.at += 1
        if self.name == "host, ids guessed":
            fetch_ahead(self.model, self.ids[following])
        elif self.name == "host, batch guessed":
            fetch_ahead(self.model, self.ids[following], given=(self.given[following], None))
        self.model(self.given[at]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, steps: int) -> float:
        """Milliseconds of a step."""
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._wait()
        return (time.perf_counter() - begin) * 1e3 / steps

    def device_memory(self) -> float:
        """The MiB of a step on the device; for ``nothing`` and on a GPU those of the rest too."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() / MIB
        ngram = self.model.ngram
        if ngram is None:
            return 0.0
        tables = ngram.tables
        if not isinstance(tables, HostNgramTables):
            return 4 * tables.weight.nbytes / MIB  # and its gradient, and Adam's two moments
        indices = tables.indices(self.ids[0], None)
        moved = tables.host.fetch(indices, 0, torch.device("cpu"))
        return (moved.places.nbytes + 2 * moved.values.nbytes) / MIB

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure(name: str, asked: argparse.Namespace, turns: Connection) -> None:
    """Send memory on the device and on the host, then at each turn the time of a step."""
    before = most()
    way = Way(name, asked)
    for _ in range(3):
        way.step()
    turns.send((way.device_memory(), (most() - before) / 1024))
    gc.collect()
    gc.disable()
    while (steps := turns.recv()) is not None:
        turns.send(way.timed(steps))


def most() -> float:
    """The peak memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=SIZES, default="cuda" if gpu else "cpu")
    parser.add_argument("--rows", type=int, default=10**8, help="of all tables (default: 10^8)")
    parser.add_argument("--width", type=int, default=16 if gpu else 2, help="16 on a GPU, else 2")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--steps", type=int, help="of a turn (default: 20 on a GPU, else 2)")
    asked = parser.parse_args()
    steps = asked.steps or (20 if asked.device == "cuda" else 2)
    apart = difference(asked.device)
    names = ("nothing", *WAYS[asked.device])
    spawn = multiprocessing.get_context("spawn")
    turns, processes = {}, {}
    for name in names:
        turns[name], far = spawn.Pipe()
        # The parent's end of each pipe would keep a process waiting that should end.
        processes[name] = spawn.Process(target=measure, args=(name, asked, far), daemon=True)
        processes[name].start()
    memory = {name: turn.recv() for name, turn in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name, turn in turns.items():
            turn.send(steps)
            times[name].append(turn.recv())
    for turn in turns.values():
        turn.send(None)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    bare = memory["nothing"][0]
    print(
        f"{asked.device}, {torch.get_num_threads()} threads, {asked.rows:,} rows of {asked.width} "
        f"in float32, {BATCH} x {LENGTH} tokens; medians of {asked.rounds} turns of {steps} steps"
    )
    print(f"{'':20}  {'step ms':>8}  {'x':>5}  {'+ms':>7}  {'device MiB':>10}  {'host MiB':>8}")
    for name in names:
        device, host = memory[name]
        print(
            f"{name:20}  {medians[name]:8.1f}  {medians[name] / medians['resident']:5.2f}  "
            f"{medians[name] - medians['nothing']:7.1f}  {device - bare:10.1f}  {host:8.0f}"
        )
    print(f"losses of a small case differ by {apart:.1e} at most, relatively; bar {BAR:.0e}")
    sys.exit(apart > BAR)


if __name__ == "__main__":
    main()
