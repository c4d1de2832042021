"""Upstream's pretrain_hybrid.py by a receipt, on one GPU and on two: prints a table.

``python benchmarks/gpu/trainer.py CHECKOUT [--part PART] [--only TEXT]``, with Megatron-LM at the
release's tag. ``single`` wants one GPU: the command that ``registry args`` prints, resumed runs,
receipts. ``host`` wants one: n-gram tables on the host against resident ones. ``layouts`` wants
two: TP, PP, EP and DP against one GPU; ``host-layouts`` the same with tables on the host, and
``expert-layouts`` EP with tables that the expert-parallel ranks share. ``drills`` wants two: ranks
of which one is odd. It exits with 1 if a row fails, with 2 without the GPUs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from trainer_host import HOST_RECIPE, hosted  # noqa: E402  # beside the tests, with the same rows
from trainer_runs import Trainer  # noqa: E402
from trainer_tables import EXPERT_RECIPE, drills, layouts, single  # noqa: E402

GPUS = {
    "single": 1,
    "host": 1,
    "layouts": 2,
    "host-layouts": 2,
    "expert-layouts": 2,
    "drills": 2,
}


def cards() -> list[str]:
    """The names of the GPUs here."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return found.splitlines()


def main() -> int:
    """Run the parts, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="Megatron-LM at the release's tag")
    parser.add_argument("--part", choices=GPUS, action="append", help="all that there are GPUs for")
    parser.add_argument(
        "--only", default="", help="only rows with this in their name; all of single's"
    )
    parser.add_argument("--other", type=Path, help="a folder with another megatron/core")
    parser.add_argument("--at-once", type=int, default=1, help="layouts that run at once")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one run")
    parser.add_argument("--folder", type=Path, help="where checkpoints and logs go and stay")
    asked = parser.parse_args()
    found = cards()
    parts = asked.part or [part for part, number in GPUS.items() if number <= len(found)]
    if not parts or max(GPUS[part] for part in parts) > len(found):
        print(f"not enough GPUs here: {found}", file=sys.stderr)
        return 2
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            folder = (asked.folder or Path(scratch)) / part
            folder.mkdir(parents=True, exist_ok=True)
            trainer = Trainer(
                checkout=asked.checkout.resolve(), folder=folder.resolve(), limit=asked.limit
            )
            made = {
                "single": lambda: single(trainer),  # noqa: B023  # called in this turn
                "host": lambda: hosted(trainer, asked.only),  # noqa: B023
                "layouts": lambda: layouts(trainer, asked.only, asked.at_once),  # noqa: B023
                "host-layouts": lambda: layouts(
                    trainer,  # noqa: B023
                    asked.only,
                    asked.at_once,
                    HOST_RECIPE,
                ),
                "expert-layouts": lambda: layouts(
                    trainer,  # noqa: B023
                    "EP2",
                    asked.at_once,
                    EXPERT_RECIPE,
                ),
                "drills": lambda: drills(trainer, asked.other, asked.only),  # noqa: B023
            }[part]()
            for row in made:
                rows.append((part, row))
                print(f"{time.monotonic() - started:6.1f} s  {part:14} {row}", flush=True)
    print(f"\n{found[0]} x {len(found)}; {asked.checkout.name}")
    for part, row in rows:
        print(f"{part:14} {row}")
    return int(not all(row.holds for _, row in rows) or not rows)


if __name__ == "__main__":
    sys.exit(main())
