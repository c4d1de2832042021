"""Kill a save of NAM-mini at random moments; print what the earlier checkpoint is then worth.

``python scripts/kill_saves.py [--times N] [--seed N]`` exits with 1 if it does not load once, or if
its receipt does not verify in this environment.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import megatron_seams as ms  # noqa: E402
from killed_saves import SECOND, kill_saves  # noqa: E402
from megatron_seams.runtime.cpu.world import cpu_world  # noqa: E402
from megatron_seams.runtime.model.build import build_model  # noqa: E402

RECIPE = ROOT / "recipes" / "nam-mini.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    recipe, environment = ms.load_recipe(RECIPE), ms.read_environment()
    plan = ms.resolve(recipe, environment)
    wrong = 0
    with cpu_world(), tempfile.TemporaryDirectory() as name:
        folder, receipt = Path(name), ms.make_receipt(plan, recipe)
        chance = random.Random(asked.seed)  # noqa: S311  # moments, no secrets
        ends = kill_saves(RECIPE, build_model(plan), receipt, folder, asked.times, chance)
        for number, end in enumerate(ends):
            kept = folder / "receipt.json"
            kept.write_text(end.receipt or "")
            verified = not ms.verify(kept, environment)
            wrong += not (end.loaded and verified)
            when = "not killed" if end.seconds is None else f"killed after {end.seconds:.3f} s"
            print(
                f"{number:3}  {when}, left {', '.join(end.files) or 'nothing'}; "
                f"the tracker names {end.named}; iter_0000001 "
                f"{'loads' if end.loaded else 'DOES NOT LOAD'}, its receipt "
                f"{'verifies' if verified else 'DOES NOT VERIFY'}"
            )
    wrong += ends[0].named != SECOND
    print(f"{len(ends) - 1} kills, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
