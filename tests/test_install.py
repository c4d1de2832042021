"""Real wheels in a real environment: what a user installs, lists, resolves and uninstalls.

One environment for the whole file, without torch: Megatron's source is there to be read, and it
could not be imported.
"""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

from megatron_seams.recipes.recipe import load_recipe
from seam_support import manifest_table, registry, toml

pytestmark = pytest.mark.install

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
PROJECTS = [ROOT / "core", *PLUGINS]
RECIPE = ROOT / "recipes" / "nam56r-mamba2.toml"


def find_uv() -> str:
    """The uv that a developer has, or the one of the environment that the tests run in."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert found, "uv is in the dev dependency group: run `make test`"
    return found


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a tool; a failure shows its output."""
    done = subprocess.run(
        [str(part) for part in arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(project: Path, into: Path) -> Path:
    """Build a project's wheel, with the build backend of the environment that the tests run in."""
    into.mkdir(parents=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", into, project)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Project folder -> its wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    return {project: build_wheel(project, folder / project.name) for project in PROJECTS}


@attrs.frozen
class Machine:
    """A virtual environment with core's wheel in it, and nothing of the workspace."""

    python: Path

    def pip(self, command: str, *arguments: str | Path) -> None:
        run(find_uv(), "pip", command, "--quiet", "--python", self.python, *arguments)

    def hold(self, *wheels: Path, megatron: bool) -> None:
        """Have exactly these plugins, and Megatron's source or not."""
        listed = run(find_uv(), "pip", "list", "--format=json", "--python", self.python)
        names = {entry["name"] for entry in json.loads(listed)}
        gone = {name for name in names if "seams-" in name or name.startswith("acme-")}
        gone |= {"megatron-core"} & names if not megatron else set()
        if gone:
            self.pip("uninstall", *sorted(gone))
        if megatron and "megatron-core" not in names:
            # Its dependencies are torch and the like; the planner reads source and needs none.
            self.pip("install", "--no-deps", "megatron-core==0.19.*")
        if wheels:
            self.pip("install", "--no-deps", *wheels)

    def registry(self, *arguments: str | Path, cwd: Path, code: int) -> str:
        """Both streams of a command, run where nothing of the checkout can be imported."""
        done = registry(*arguments, python=self.python, cwd=cwd, code=code, PYTHONPATH="")
        return done.stdout + done.stderr

    def json(self, *arguments: str | Path, cwd: Path, code: int) -> dict[str, object]:
        done = registry(*arguments, "--json", python=self.python, cwd=cwd, code=code, PYTHONPATH="")
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def machine(wheels: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("machine") / "venv"
    run(find_uv(), "venv", "--quiet", "--python", sys.executable, folder)
    made = Machine(folder / "bin" / "python")
    made.pip("install", wheels[ROOT / "core"])
    return made


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def text_in(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()


def seams_of(listing: dict[str, object]) -> dict[str, str]:
    """Seam name -> its distribution, over all families of ``list --json``."""
    families = listing["families"]
    assert isinstance(families, list)
    return {seam["name"]: seam["distribution"] for family in families for seam in family["seams"]}


# --- what the wheels hold ---------------------------------------------------------------------


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_a_wheel_holds_its_package_its_types_and_its_licence(
    project: Path, wheels: dict[Path, Path]
) -> None:
    names = names_in(wheels[project])
    (package,) = (path.name for path in (project / "src").iterdir() if path.is_dir())
    assert f"{package}/py.typed" in names
    assert "Apache License" in text_in(wheels[project], "/licenses/LICENSE")
    # Every source file and manifest, and nothing else: no tests, no benchmarks, no caches.
    # The pages of the documentation are a link in core's sources, and files in its wheel.
    sources = {
        Path(folder, name).relative_to(project / "src").as_posix()
        for folder, _, files in os.walk(project / "src" / package, followlinks=True)
        for name in files
        if "__pycache__" not in Path(folder).parts
    }
    assert (project not in PLUGINS) == (f"{package}/pages/errors.md" in sources)
    assert {name for name in names if ".dist-info/" not in name} == sources
    metadata = email.message_from_string(text_in(wheels[project], ".dist-info/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert not [line for line in needed if re.match("torch|megatron-core|numpy", line)]
    if project in PLUGINS:
        assert [re.split(r"[<>=\[ ]", line)[0] for line in needed] == ["megatron-seams"]


@pytest.mark.parametrize("project", PLUGINS, ids=lambda path: path.name)
def test_a_plugins_wheel_holds_the_manifest_of_every_entry_point(
    project: Path, wheels: dict[Path, Path]
) -> None:
    points = text_in(wheels[project], "entry_points.txt")
    packages = re.findall(
        r"^\w+ = ([\w.]+)$", points.partition("[megatron_seams]")[2], re.MULTILINE
    )
    assert packages
    for package in packages:
        assert f"{package.replace('.', '/')}/seam.toml" in names_in(wheels[project])


# --- a machine without Megatron ---------------------------------------------------------------


def test_without_megatron_nothing_is_native_and_that_is_said_first(
    machine: Machine, tmp_path: Path
) -> None:
    machine.hold(megatron=False)
    found = machine.json("list", cwd=tmp_path, code=3)
    findings = found["findings"]
    assert isinstance(findings, list)
    assert [finding["error"] for finding in findings] == ["MegatronMissing"]
    assert not seams_of(found)
    assert machine.registry("list", cwd=tmp_path, code=3).startswith("no Megatron")
    assert "SEAM-S01" in machine.registry("resolve", "M", cwd=tmp_path, code=3)


@pytest.mark.parametrize("project", PLUGINS, ids=lambda path: path.name)
def test_each_plugin_installs_alone_beside_core(
    project: Path, machine: Machine, wheels: dict[Path, Path], tmp_path: Path
) -> None:
    machine.hold(wheels[project], megatron=False)
    run(find_uv(), "pip", "check", "--quiet", "--python", machine.python)
    found = machine.json("list", cwd=tmp_path, code=3)
    assert set(seams_of(found).values()) == {f"megatron-seams-{project.name}"}
    assert found["broken"] == []


# --- a machine with Megatron's source ---------------------------------------------------------


def provided(layers: Iterable[dict[str, object]]) -> Counter[tuple[object, object]]:
    return Counter((layer["family"], layer["provider"]) for layer in layers)


def test_what_is_installed_is_listed_and_resolved_without_torch(
    machine: Machine, wheels: dict[Path, Path], tmp_path: Path
) -> None:
    machine.hold(*(wheels[project] for project in PLUGINS), megatron=True)
    torchless = [machine.python, "-c", "import torch"]
    assert subprocess.run(torchless, capture_output=True, check=False).returncode == 1
    shown = machine.registry("list", "--owners", cwd=tmp_path, code=0)
    assert "megatron-core 0.19." in shown
    assert "NVIDIA/Megatron-LM" in shown
    for project in PLUGINS:
        for manifest in (project / "src").rglob("seam.toml"):
            (owner,) = re.findall('^owner = "(.+)"$', manifest.read_text(), re.MULTILINE)
            assert owner in shown

    found = machine.json("resolve", RECIPE, cwd=tmp_path, code=0)
    plan = found["plan"]
    assert isinstance(plan, dict)
    assert provided(plan["layers"]) == {
        ("dsa", "native"): 9,
        ("mla", "native"): 4,
        ("moe", "native"): 22,
        ("mamba", "native"): 13,
        ("recurrent", "seam"): 4,
    }
    receipt = tmp_path / "receipt.json"
    machine.registry("resolve", RECIPE, "--receipt", receipt, cwd=tmp_path, code=0)
    machine.registry("verify", receipt, cwd=tmp_path, code=0)


def test_uninstalling_the_recurrent_seam_refuses_its_four_layers_and_says_what_to_install(
    machine: Machine, wheels: dict[Path, Path], tmp_path: Path
) -> None:
    machine.hold(*(wheels[project] for project in PLUGINS), megatron=True)
    receipt = tmp_path / "receipt.json"
    machine.registry("resolve", RECIPE, "--receipt", receipt, cwd=tmp_path, code=0)
    distribution = load_recipe(RECIPE).install["recurrent"]
    machine.pip("uninstall", distribution)

    printed = machine.registry("resolve", RECIPE, cwd=tmp_path, code=2)

    assert "SEAM-R01" in printed
    assert "a provider for family 'recurrent' (token 'R', 4 layers)" in printed
    assert "layers: 12, 24, 36, 48" in printed
    assert f"pip install {distribution}" in printed
    assert "refused: 1 reason" in printed
    assert "x refused 4" in printed
    verified = machine.registry("verify", receipt, cwd=tmp_path, code=2)
    assert "12, 24, 36, 48" in verified
    assert "SEAM-V02" in verified


# --- a plugin from elsewhere ------------------------------------------------------------------

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-kda"
version = "2.5"
dependencies = ["megatron-seams"]

[project.entry-points.megatron_seams]
kda = "acme_kda.layer"

[tool.hatch.build.targets.wheel]
packages = ["src/acme_kda"]
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A project with a family that core has never heard of."""
    project = tmp_path / "acme-kda"
    package = project / "src" / "acme_kda" / "layer"
    package.mkdir(parents=True)
    (project / "pyproject.toml").write_text(PYPROJECT)
    (package / "seam.toml").write_text(
        toml(manifest_table("kda", "kda", owner="@acme/linear", meaning="Kimi delta attention."))
    )
    (package / "plugin.py").touch()
    for module in (package / "__init__.py", package.parent / "__init__.py", package / "plugin.py"):
        module.write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').close()\nraise RuntimeError('imported')\n"
        )
    (project / "CODEOWNERS").write_text("* @acme/linear\n")
    recipe = {
        "schema": 1,
        "model": {"name": "with KDA", "pattern": "MK", "depth": 6},
        "dialect": {"tokens": {"K": "kda"}},
    }
    (project / "recipe.toml").write_text(toml(recipe))
    return project


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_plugin_from_elsewhere_brings_a_family_that_core_has_never_heard_of(
    kind: str, machine: Machine, outside: Path, tmp_path: Path
) -> None:
    machine.hold(megatron=True)
    recipe = outside / "recipe.toml"
    assert "[SEAM-R01]" in machine.registry("resolve", recipe, cwd=tmp_path, code=2)
    if kind == "wheel":
        machine.pip("install", "--no-deps", build_wheel(outside, tmp_path / "dist"))
    else:
        machine.pip("install", "--no-deps", "-e", outside)

    found = machine.json("resolve", recipe, cwd=tmp_path, code=0)

    plan = found["plan"]
    assert isinstance(plan, dict)
    assert provided(plan["layers"]) == {("mamba", "native"): 3, ("kda", "seam"): 3}
    assert plan["seams"]["kda"]["distribution"] == "acme-kda"
    assert plan["seams"]["kda"]["version"] == "2.5"
    assert "@acme/linear" in machine.registry("list", "--owners", cwd=tmp_path, code=0)

    # The source, its wheel and its installation are gated alike, and no line of it has run.
    owners = ("--codeowners", outside / "CODEOWNERS")
    built = next((tmp_path / "dist").glob("*.whl"), outside)
    hand = next(Path(machine.python).parent.parent.glob("lib/*/site-packages"))
    for command in (
        ("check", *owners),
        ("check", *owners, outside),
        ("check", *owners, built),
        ("preview", hand, recipe),
        ("report", recipe, "--out", tmp_path / "page.html"),
        ("explain", "kda"),
    ):
        machine.registry(*command, cwd=tmp_path, code=0)
    assert "seam kda 2.5" in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "imported").exists()
    machine.hold(megatron=True)
    assert "[SEAM-R01]" in machine.registry("resolve", recipe, cwd=tmp_path, code=2)
