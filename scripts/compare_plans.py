"""Compare two checkouts of this repository: plans, receipts, refusals and exit codes.

    python scripts/compare_plans.py OTHER_CHECKOUT [--recipes 2000] [--environments 100] [--seed 1]

Each checkout plans with its own interpreter (.venv): every recipe of this checkout, random recipes
over random environments, and every command of the command line. It compares the parts that programs
read: plans and receipts as JSON, codes, layers, keys and subjects of refusals, exit codes. It does
not compare prose and the digests of code, and a reason that is given twice counts once.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENS = "MG*D+-EKQR"
FAMILIES = ("mamba", "gdn", "attention", "dsa", "mla", "mlp", "moe", "kda", "qla", "recurrent")
FEATURES = ("ngram", "engram", "recall")
SLOTS = ("mamba_layer", "gdn_layer", "attention_layer", "mla_layer", "dsa_layer", "mlp_layer")
#: Fields that hold prose, or digests that moving a file changes.
PROSE = {"asked", "found", "next", "why", "note", "notes", "summary", "message"}
PROSE |= {"code_digest", "digest", "line", "file", "origin", "previous_digest", "receipt_digest"}


# --- random input -----------------------------------------------------------------------------


def environments(count: int, dice: random.Random) -> list[dict[str, Any]]:
    """Surfaces and seams as plain values."""
    return [_environment(dice) for _ in range(count)]


def _environment(dice: random.Random) -> dict[str, Any]:
    constants = ("MAMBA", "GDN", "ATTENTION", "DS_ATTENTION", "MLA", "MLP", "MOE")
    native = {
        "version": dice.choice(("0.17.1", "0.18.2", "0.19.2")),
        "without": [it for it in constants if dice.random() < 0.25],
        "exclusive": dice.random() < 0.8,
    }
    seams = []
    for number in range(dice.randrange(7)):
        feature = dice.random() < 0.3
        family = dice.choice(FEATURES if feature else FAMILIES)
        seam = {
            "name": f"s{number}" if dice.random() < 0.8 else family,
            "family": family,
            "status": "experiment" if dice.random() < 0.2 else "seam",
            "requires": dice.choice((">=0.17", ">=0.17,<0.20", ">=0.17,<0.18", ">=0.19")),
            "supports": [
                it for it in ("tensor-parallel", "pipeline-parallel") if dice.random() < 0.6
            ],
        }
        if feature:
            seam["placement"] = dice.choice(("embedding", "residual"))
        else:
            seam["slots"] = dice.sample(SLOTS, dice.randrange(1, 3))
        if dice.random() < 0.4:
            seam["fallback"] = "native"
            seam["accepts"] = {"symbol-name": dice.choice((*constants, "KDA", "RNN"))}
        seams.append(seam)
    names = {seam["name"]: seam for seam in seams}
    return {"native": native, "seams": [names[name] for name in sorted(names)]}


def recipes(count: int, dice: random.Random) -> list[dict[str, Any]]:
    """Recipes as parsed TOML, most of them sound."""
    return [_recipe(dice) for _ in range(count)]


class _Calm(random.Random):
    """Dice that rarely ask for anything out of the ordinary: most of its recipes have a plan."""

    def random(self) -> float:
        return super().random() ** 0.2


def _recipe(dice: random.Random) -> dict[str, Any]:
    letters = dice.sample(TOKENS, dice.randrange(1, 6))
    if dice.random() < 0.6:
        letters = dice.sample("MG*-E", dice.randrange(1, 5))
        dice = _Calm(dice.randrange(2**32))
    pattern = "".join(dice.choice(letters) for _ in range(dice.randrange(1, 12)))
    if dice.random() < 0.2:
        cut = dice.randrange(len(pattern) + 1)
        pattern = f"{pattern[:cut]}|{pattern[cut:]}"
    if dice.random() < 0.2:
        part = "".join(dice.choice(letters) for _ in range(dice.randrange(3)))
        pattern += f"/{part}" * dice.randrange(1, 3)
    if dice.random() < 0.05:
        pattern += dice.choice(("?", " ", "|", "/", "é"))
    model: dict[str, Any] = {"name": "random", "pattern": pattern}
    if dice.random() < 0.4:
        model["depth"] = dice.randrange(1, 60)
    if dice.random() < 0.1:
        model["dialect"] = dice.choice(("nam", "megatron", "other"))
    asked: dict[str, Any] = {
        "schema": 1,
        "model": model,
        "dialect": {"tokens": {"K": "kda", "Q": "qla", "R": "recurrent"}},
    }
    policy: dict[str, Any] = {}
    names = [*(f"s{number}" for number in range(7)), *FAMILIES, *FEATURES]
    if dice.random() < 0.3:
        policy["experiments"] = dice.sample(names, 2)
    if dice.random() < 0.3:
        policy["pin"] = {dice.choice((*FAMILIES, *FEATURES)): dice.choice(names)}
    if dice.random() < 0.1:
        policy["allow"] = dice.sample(names, 8)
    if policy:
        asked["policy"] = policy
    if dice.random() < 0.2:
        asked["families"] = {dice.choice(FAMILIES): dice.choice((*FAMILIES, *FEATURES))}
    if dice.random() < 0.2:
        entry: dict[str, Any] = {
            "positions": [dice.randrange(0, 14) for _ in range(dice.randrange(1, 4))],
            "family": dice.choice(FAMILIES),
        }
        if dice.random() < 0.5:
            entry["of"] = dice.choice(FAMILIES)
        asked["layers"] = [entry]
    if dice.random() < 0.3:
        asked["features"] = [_feature(dice) for _ in range(dice.randrange(1, 3))]
    if dice.random() < 0.15:
        asked["override"] = [
            {
                "family": dice.choice(FAMILIES),
                "seam": dice.choice(names),
                "reason": "a comparison",
                "expires": dice.choice(("2026-11-30", "2027-12-01")),
            }
        ]
    if dice.random() < 0.2:
        asked["seams"] = {dice.choice(names): {"width": 4}}
    if dice.random() < 0.3:
        asked["parallelism"] = {
            "tensor-parallel": dice.choice((1, 2)),
            "pipeline-parallel": dice.choice((1, 2, 3)),
            "context-parallel": dice.choice((1, 1, 2)),
        }
    if dice.random() < 0.2:
        asked["runtime"] = {
            "packed-sequences": dice.random() < 0.5,
            "inference": dice.random() < 0.3,
        }
    return asked


def _feature(dice: random.Random) -> dict[str, Any]:
    entry: dict[str, Any] = {"family": dice.choice((*FEATURES, *FAMILIES[:1]))}
    if dice.random() < 0.5:
        entry["layers"] = [dice.randrange(0, 9) for _ in range(dice.randrange(1, 3))]
    if dice.random() < 0.3:
        entry["placement"] = dice.choice(("embedding", "residual"))
    return entry


# --- one checkout -----------------------------------------------------------------------------

#: Runs in a checkout's interpreter; reads the input from a file and prints a JSON list.
WORKER = """
import datetime, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/tests")
import seam_support as support
try:
    from megatron_seams.records.plan_json import describe_plan
    from megatron_seams.records.receipt import make_receipt
    from megatron_seams.recipes.recipe import Recipe, load_recipe
    from megatron_seams.base.structure import structure
    from megatron_seams.planning.environment import read_environment
    from megatron_seams.planning.resolver import resolve
except ImportError:
    from megatron_seams.receipt import describe_plan, make_receipt
    from megatron_seams.recipe import Recipe, load_recipe
    from megatron_seams.strict import structure
    from megatron_seams.environment import read_environment
    from megatron_seams.resolver import resolve
from megatron_seams.errors import Refusal

given = json.loads(Path(sys.argv[2]).read_text())
TODAY = datetime.date(2026, 12, 1)

def fault(it):
    return it.to_dict()

def outcome(recipe, where):
    try:
        plan = resolve(recipe, where, today=TODAY)
    except Refusal as refusal:
        return {"refused": [fault(it) for it in refusal.reasons], "exit": int(refusal.exit_code),
                "findings": [fault(it) for it in refusal.findings], "tokens": refusal.tokens}
    return {"plan": describe_plan(plan), "receipt": json.loads(make_receipt(plan, recipe)),
            "findings": [fault(it) for it in plan.findings]}

found = []
here = read_environment()
for file in given["files"]:
    try:
        recipe = load_recipe(Path(file))
    except Refusal as refusal:
        found.append({"refused": [fault(it) for it in refusal.reasons]})
        continue
    found.append(outcome(recipe, here))
places = []
for spec in given["environments"]:
    seams = [support.make_seam(**seam) for seam in spec["seams"]]
    places.append(support.environment(*seams, native=support.surface(**spec["native"])))
for index, asked in enumerate(given["recipes"]):
    for entry in asked.get("override", ()):
        entry["expires"] = datetime.date.fromisoformat(entry["expires"])
    recipe, faults = structure(Recipe, asked)
    if recipe is None:
        found.append({"invalid": sorted(it.key for it in faults)})
    else:
        found.append(outcome(recipe, places[index % len(places)]))
print(json.dumps(found))
"""


def planned(checkout: Path, given: Path) -> list[Any]:
    """The outcomes of a checkout's planner."""
    command = [str(checkout / ".venv" / "bin" / "python"), "-c", WORKER, str(checkout), str(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=checkout)
    return list(json.loads(done.stdout))


def commands(folder: Path, wheel: str | None) -> Iterator[list[str]]:
    """A command line for each command and answer, with files of its own in ``folder``."""
    recipes = sorted(str(file) for file in (ROOT / "recipes").glob("*.toml"))
    yield from (
        ["list"],
        ["list", "--owners"],
        ["list", "--json"],
        ["surface"],
        ["surface", "--json"],
    )
    for recipe in recipes:
        yield ["resolve", recipe]
        yield ["resolve", recipe, "--json"]
        yield ["args", recipe, "--json"]
    for pattern in ("AEMR", "M*ME", "-M-M", "M?M", "M*|M/ME", "", "MM|"):
        yield ["resolve", pattern, "--json"]
        yield ["resolve", pattern, "--dialect", "nam", "--layers"]
    for what in ("M", "*", "R", "D", "mla", "recurrent", "ngram", "nothing"):
        yield ["explain", what]
    receipt, recipe = str(folder / "receipt.json"), str(ROOT / "recipes" / "nam56r-mamba2.toml")
    yield ["resolve", recipe, "--receipt", receipt]
    yield ["verify", receipt]
    yield ["accept", receipt, "--reason", "a comparison"]
    yield ["verify", str(folder / "none.json")]
    yield ["accept", receipt, "--reason", " "]
    yield ["check"]
    yield ["check", "--format", "json"]
    yield ["check", str(ROOT / "plugins"), "--format", "json"]
    yield ["report", recipe, "--out", str(folder / "page.html")]
    yield ["new", "kda", "--family", "kda", "--owner", "@acme/layers", "--out", str(folder)]
    yield ["new", "kda", "--family", "kda", "--owner", "nobody", "--out", str(folder / "other")]
    yield ["smoke", str(ROOT / "recipes" / "nam-mini.toml"), "--steps", "2"]
    yield ["graduate", "mla", "--from", str(folder)]
    if wheel is not None:
        yield ["surface", wheel, "--json"]
        yield ["preview", wheel, *recipes, "--json"]
        yield ["resolve", recipe, "--megatron", wheel, "--json"]
    yield from (["--help"], ["--version"], ["nothing"])


def called(checkout: Path, folder: Path, wheel: str | None) -> list[dict[str, Any]]:
    """Exit code, and the JSON where there is some, of every command in a checkout."""
    found = []
    for arguments in commands(folder, wheel):
        command = [str(checkout / ".venv" / "bin" / "registry"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
        answer = None
        if "json" in arguments or "--json" in arguments:
            answer = json.loads(done.stdout or "null")
        shown = [it.replace(str(folder), "FOLDER") for it in arguments]
        found.append({"command": shown, "exit": done.returncode, "json": answer})
    return found


# --- the comparison ---------------------------------------------------------------------------


def bare(value: Any) -> Any:
    """A value without prose and digests of code."""
    if isinstance(value, dict):
        return {key: bare(part) for key, part in value.items() if key not in PROSE}
    if not isinstance(value, list):
        return value
    parts = [bare(part) for part in value]
    faults = all(isinstance(part, dict) and "code" in part for part in parts)
    return [part for at, part in enumerate(parts) if part not in parts[:at]] if faults else parts


def differences(mine: list[Any], other: list[Any], names: list[str]) -> list[str]:
    """The differences, two lines each."""
    found = []
    for name, one, two in zip(names, mine, other, strict=True):
        if bare(one) != bare(two):
            found.append(f"{name}\n    here:  {json.dumps(bare(one))[:1500]}")
            found.append(f"    there: {json.dumps(bare(two))[:1500]}")
    return found


def main() -> int:
    """Compare, print what differs, and return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="another checkout, set up (make setup)")
    parser.add_argument("--recipes", type=int, default=2000)
    parser.add_argument("--environments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megatron", metavar="WHEEL", help="another Megatron, for preview")
    parser.add_argument("--no-commands", action="store_true")
    asked = parser.parse_args()
    dice = random.Random(asked.seed)  # noqa: S311 - no secret
    files = [str(file) for file in sorted((ROOT / "recipes").glob("*.toml"))]
    given = {
        "files": files,
        "environments": environments(asked.environments, dice),
        "recipes": recipes(asked.recipes, dice),
    }
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        file = Path(here, "given.json")
        file.write_text(json.dumps(given))
        mine, other = planned(ROOT, file), planned(asked.other.resolve(), file)
        names = [*files, *(json.dumps(it) for it in given["recipes"])]
        found = differences(mine, other, names)
        plans = sum("plan" in it for it in mine)
        print(
            f"{len(files)} recipe files, {asked.recipes} random recipes over "
            f"{asked.environments} environments: {plans} plans, {len(mine) - plans} refusals"
        )
        if not asked.no_commands:
            mine = called(ROOT, Path(here, "out"), asked.megatron)
            other = called(asked.other.resolve(), Path(there, "out"), asked.megatron)
            found += differences(mine, other, [" ".join(it["command"]) for it in mine])
            print(f"{len(mine)} commands")
    print("\n".join(found))
    print(f"{sum(not line.startswith('    ') for line in found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
