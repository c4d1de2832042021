"""One model by every road: prints a table of every recipe on every release, and what differs.

``python scripts/one_model.py [--release 0.18] [--drop=FLAG]... [RECIPE...]`` builds the model of
each recipe twice, by ``build_model`` and by upstream's own command line from the arguments that the
registry prints, and compares keys, shapes and configuration fields (tests/both_roads.py). It exits
with 1 if any differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import megatron_releases  # noqa: E402  # beside the tests, which fetch releases too

#: The Megatron of the environment.
HERE = "installed"


def rows(release: str, recipes: list[Path], drop: list[str]) -> list[dict[str, Any]]:
    """The models of both roads for each recipe on one release."""
    paths = [] if release == HERE else [str(megatron_releases.installation(release))]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(ROOT / "tests" / "both_roads.py")),
            *(f"--drop={flag}" for flag in drop),
            *map(str, recipes),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        sys.stderr.write(done.stderr[-4000:])
        raise SystemExit(f"the roads on {release} did not come to their end")
    return found


def verdict(row: dict[str, Any]) -> str:
    """One row's last column."""
    if "refused" in row:
        return "refused: " + "; ".join(reason.partition(":")[0] for reason in row["refused"])
    return f"{len(row['differences'])} DIFFERENCES" if row["differences"] else "equal"


def show(row: dict[str, Any]) -> None:
    """Print one row, and every difference below it."""
    size = f"{row['parameters'] / 1e9:.2f}" if "parameters" in row else "-"
    name = f"{row['recipe']} {row.get('dropped', '')}".strip()
    cells = [f"{row['megatron']:8}", f"{name[:32]:32}", f"{size:>7}"]
    cells += [f"{row.get('keys', '-'):>5}", f"{row.get('fields', '-'):>6}"]
    print("  ".join([*cells, verdict(row)]))
    if row["changed"] and "refused" not in row:
        print(f"{'':10}(on both roads: {', '.join(row['changed'])})")
    for difference in row.get("differences", []):
        print(f"{'':10}{difference}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    releases = [*megatron_releases.RUN, HERE]
    parser.add_argument("--release", action="append", choices=releases, help="only this one")
    parser.add_argument(
        "--drop", action="append", metavar="FLAG", help="pass every printed flag but this one on"
    )
    parser.add_argument("recipes", nargs="*", type=Path, help="recipe files; all by default")
    given = parser.parse_args()
    recipes = given.recipes or sorted((ROOT / "recipes").glob("*.toml"))
    head = f"{'megatron':8}  {'recipe':32}  {'billion':>7}  {'keys':>5}  {'fields':>6}  both roads"
    print(head)
    found = []
    for release in given.release or releases:
        for row in rows(release, recipes, given.drop or []):
            show(row)
            found.append(row)
    print(
        f"{sum('refused' not in row for row in found)} models by two roads, "
        f"{sum(bool(row.get('differences')) for row in found)} differ, "
        f"{sum('refused' in row for row in found)} refused"
    )
    return 1 if any(row.get("differences") for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
