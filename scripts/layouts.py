"""NAM-mini in every parallel layout over gloo, against one rank: prints a table.

``python scripts/layouts.py [--layout TEXT]`` exits with 1 if a loss or a gradient differs by more
than 1e-5, or a checkpoint does not come back from its layout with the same weights.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import forked  # noqa: E402
import megatron_seams as ms  # noqa: E402
from layouts import Layout, compare  # noqa: E402
from megatron_seams.recipes.recipe import Parallelism  # noqa: E402

RECIPE = ROOT / "recipes" / "nam-mini.toml"


def spread(**sizes: object) -> Parallelism:
    return Parallelism(**sizes)  # type: ignore[arg-type]


TP = {"tensor_parallel": 2, "sequence_parallel": True}
LAYOUTS = (
    Layout(name="TP2 + SP", parallelism=spread(**TP)),
    Layout(name="PP2", parallelism=spread(pipeline_parallel=2)),
    Layout(
        name="PP2 with |",
        parallelism=spread(pipeline_parallel=2),
        pattern="AEMEA|EMEAEMR",
    ),
    Layout(
        name="PP2, 2 virtual stages",
        parallelism=spread(pipeline_parallel=2),
        pattern="AEM|EAE|MEAE|MR",
        chunks=2,
    ),
    Layout(name="EP2 (allgather)", parallelism=spread(expert_parallel=2)),
    Layout(
        name="CP2 (R and E alone)",
        parallelism=spread(context_parallel=2),
        pattern="RERE",
        alone=True,
    ),
    Layout(name="TP2 + SP, PP2", parallelism=spread(**TP, pipeline_parallel=2)),
    Layout(name="PP2, EP2", parallelism=spread(pipeline_parallel=2, expert_parallel=2)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", default="", help="only layouts with this text in their name")
    asked = parser.parse_args()
    forked.fork_ranks()
    base, wrong = ms.load_recipe(RECIPE), 0
    print(f"{'layout':24} {'pattern':18} ranks  loss differs  gradient differs  tensors  moved")
    for layout in LAYOUTS:
        if asked.layout not in layout.name:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            found = compare(layout, base, Path(name))
        wrong += not found.equal
        print(
            f"{layout.name:24} {layout.pattern or base.model.pattern:18} {layout.world_size:5}  "
            f"{found.loss:12.1e}  {found.gradient:16.1e}  {found.tensors:7}  "
            f"{'yes' if found.moved else 'NO'}{'' if found.equal else '  DIFFERS'}"
            f"   ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
