"""The end of the seam: one folder and one line go, and nothing else changes.

A copy of the repository without them is tested where the seam is not installed: recipes, command
line and gate, which are all that could still know of it. The copy's whole suite is minutes more and
runs where it is asked for: ``pytest -m whole`` with this file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import attrs
import pytest

from linked_environment import link_environment
from seam_support import registry, run_python

pytestmark = pytest.mark.suite

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER, LINE = "plugins/mla", "/plugins/mla/"
#: The tests of recipes, command line and gate that look at what is installed. Those of the planner
#: that make their environment themselves (resolver, pattern, settings, constraints) cannot tell
#: whether the seam is there.
STILL = (
    *("arguments", "recipes", "justify", "cli", "allowlist", "docs", "plugins"),
    *("check", "check_owners", "check_sources", "preview"),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository without the seam."""
    made = tmp_path_factory.mktemp("without") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        file = REPOSITORY / name
        if (file.is_file() or file.is_symlink()) and not name.startswith(f"{FOLDER}/"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, made / name, follow_symlinks=False)
    # Fetched before: the package installer's own folder and the published releases.
    if (REPOSITORY / ".tools").is_dir():
        shutil.copytree(
            REPOSITORY / ".tools",
            made / ".tools",
            symlinks=True,
            ignore=shutil.ignore_patterns(".0*"),  # what another test process is fetching
            copy_function=os.link,
        )
    owners = made / "CODEOWNERS"
    lines = owners.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(LINE)]
    assert len(kept) == len(lines) - 1
    owners.write_text("".join(kept), encoding="utf-8")
    return made


@attrs.frozen
class Without:
    """The copy, and a Python that has the copy's packages and everything else but the seam."""

    folder: Path
    python: Path

    def run(self, *arguments: str) -> str:
        """Run Python in the copy; what it prints."""
        outside = ("PYTHONPATH", "VIRTUAL_ENV")
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in outside},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def without(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Without:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    link_environment(folder, left_out=lambda name: "megatron_seams" in name)
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    packages = [("-e", package) for package in (copy / "core", *copy.glob("plugins/*"))]
    subprocess.run([*uv, "--no-deps", *chain(*packages)], check=True, capture_output=True)
    return Without(folder=copy, python=python)


#: Prints family and provider of each layer of each recipe, or what stops it.
RESOLVED = """
import json, sys
import megatron_seams as ms
from megatron_seams.records.plan_json import describe_plan, layer_line

environment = ms.read_environment()

def resolved(file):
    try:
        plan = ms.resolve(ms.load_recipe(file), environment)
    except ms.Refusal as refusal:
        return [f"{reason.code} {reason.subject}" for reason in refusal.reasons]
    return [layer_line(layer) for layer in describe_plan(plan)["layers"]]

print(json.dumps({file: resolved(file) for file in sys.argv[1:]}))
"""


def resolved(recipes: list[Path], python: Path | str = sys.executable) -> dict[str, list[str]]:
    """Recipe -> family and provider of each layer, or what stops it; by that Python's packages."""
    done = run_python("-c", RESOLVED, *recipes, python=python, code=0)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_nothing_outside_the_folder_depends_on_it(copy: Path) -> None:
    names = ("megatron_seams_mla", "megatron-seams-mla", FOLDER)
    code = [file for file in copy.rglob("*") if file.suffix in (".py", ".toml", ".sh", ".json")]
    code += [copy / "Makefile", copy / "CODEOWNERS", copy / ".ci" / "run"]
    naming = [
        (str(file.relative_to(copy)), name)
        for file in code
        if ".tools" not in file.parts
        for name in names
        if name in file.read_text(encoding="utf-8")
    ]
    assert naming == []


def test_the_planner_the_command_line_and_the_gate_work_without_it(
    without: Without, record_property: Callable[[str, object], None]
) -> None:
    where = "import importlib.util as u; print(u.find_spec('megatron_seams{}'))"
    assert without.run("-c", where.format("_mla")).strip() == "None"
    assert str(without.folder / "core") in without.run("-c", where.format(""))
    output = without.run("-m", "pytest", "-q", "--light", *map("tests/test_{}.py".format, STILL))
    summary = output.strip().splitlines()[-1]
    found = re.search(r"(\d+) passed", summary)
    assert found, summary
    assert int(found[1]) > 350, summary
    record_property("summary", summary)
    gate = without.run("-m", "megatron_seams", "check")
    assert "check: 0 errors" in gate
    assert "mla" not in gate
    without.run("-m", "ruff", "check", "--quiet", ".")
    without.run("-m", "ruff", "format", "--quiet", "--check", ".")


def test_every_recipe_is_as_before(without: Without) -> None:
    assert_recipes_are_as_before(without.python)


@pytest.mark.whole
def test_the_whole_suite_passes_and_every_recipe_is_as_before(copy: Path) -> None:
    settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # On the installed release: the suite's own runs on older ones, where the seam is still needed,
    # are another question than whether it can go here.
    done = subprocess.run(
        ["make", "test", "ARGS=--ignore=tests/test_releases.py"],
        cwd=copy,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert_recipes_are_as_before(copy / ".venv" / "bin" / "python")


def assert_recipes_are_as_before(python: Path) -> None:
    listed = json.loads(registry("list", "--json", python=python).stdout)
    (latent,) = (row for row in listed["families"] if row["family"] == "mla")
    assert (latent["state"], latent["native_symbol"], latent["seams"]) == ("native", "+", [])
    recipes = sorted((REPOSITORY / "recipes").glob("*.toml"))
    here = resolved(recipes)
    assert len(here) == len(recipes) > 5
    assert any(len(layers) > 5 for layers in here.values())
    assert resolved(recipes, python) == here
