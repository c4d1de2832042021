"""The agreement of ranks: requests, bytes and rounds for each rank, and the time for 2 to 16 ranks.

``python benchmarks/agreement.py [--rounds N] [--recipe FILE]``. The ranks are processes of this
machine that talk to one store over TCP, as those of a run do. What is printed for 4,096 and 16,384
ranks is extrapolated, not measured: the requests are counted exactly and the store serves them one
after another, so the time is a straight line through the measured ones.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, TCPStore

import megatron_seams as ms
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.software import software
from megatron_seams.runtime.agreement.exchange import agree
from megatron_seams.runtime.agreement.meeting import Meeting
from megatron_seams.runtime.agreement.statement import Statement

ROOT = Path(__file__).resolve().parent.parent
MEASURED = (2, 4, 8, 16)
EXTRAPOLATED = (4096, 16384)


class Counting(Store):
    """A store that counts what goes through it."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self.requests = 0
        self.sent = 0

    def _count(self, keys: Any, value: Any = "") -> None:
        self.requests += 1
        listed = [keys] if isinstance(keys, str) else keys
        self.sent += sum(len(key) for key in listed) + len(str(value))

    def set(self, key: str, value: Any) -> None:
        """Count and pass on."""
        self._count(key, value)
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """Count and pass on."""
        self._count(key)
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        """Count and pass on."""
        self._count(key, amount)
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        """Count and pass on."""
        self._count(keys)
        return self._store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta = timedelta(minutes=1)) -> None:
        """Count and pass on."""
        self._count(keys)
        self._store.wait(keys, timeout)


def rank(
    number: int, world: int, port: int, rounds: int, statement: Statement, results: Any
) -> None:
    """One rank's rounds; their seconds, and what the first sent."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    times, counted = [], None
    for turn in range(rounds + 1):
        store.add(f"start {turn}", 1)
        while store.add(f"start {turn}", 0) < world:
            time.sleep(0.001)
        counting = Counting(store) if turn == 0 else None
        used = PrefixStore(f"turn {turn}", counting or store)
        meeting = Meeting(store=used, rank=number, world_size=world, timeout=timedelta(seconds=60))
        started = time.perf_counter()
        agree(meeting, "plan", statement)
        if counting is None:
            times.append(time.perf_counter() - started)
        else:
            counted = counting.requests, counting.sent
    results.put((number, counted, times))


def measured(world: int, rounds: int, statement: Statement) -> tuple[list[Any], float]:
    """Requests and bytes of every rank, and the median of the slowest rank's seconds."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=rank, args=(number, world, server.port, rounds, statement, results))
        for number in range(world)
    ]
    for process in ranks:
        process.start()
    found = sorted(results.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join()
    slowest = [max(times) for times in zip(*(each[2] for each in found), strict=True)]
    return [each[1] for each in found], statistics.median(slowest)


def line(points: list[tuple[int, float]]) -> Callable[[int], float]:
    """The straight line nearest to the points, by least squares."""
    middle = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    spread = sum((x - middle[0]) ** 2 for x, _ in points)
    slope = sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread
    return lambda x: middle[1] + slope * (x - middle[0])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "nam56r-mamba2.toml")
    asked = parser.parse_args()
    plan = ms.resolve(ms.load_recipe(asked.recipe), ms.read_environment())
    statement = Statement.of({"plan": describe_plan(plan), "software": software()})
    print(f"{asked.recipe.name}: {plan.name}, {len(plan.layers)} layers")
    print("ranks   requests: most, usual   bytes: most, usual   rounds   time")
    points = []
    for world in MEASURED:
        counts, seconds = measured(world, asked.rounds, statement)
        requests, sent = (sorted(count[part] for count in counts) for part in (0, 1))
        half = (world - 1) // 2
        points.append((world, seconds))
        print(
            f"{world:5} {requests[-1]:16} {requests[half]:6} {sent[-1]:13} {sent[half]:6} {2:8} "
            f"{1e3 * seconds:8.1f} ms"
        )
    time_of = line(points)
    for world in EXTRAPOLATED:
        print(f"{world:5}   extrapolated, not measured {time_of(world):28.1f} s")


if __name__ == "__main__":
    main()
