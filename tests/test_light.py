"""The planner is light: what audits code does not run it, and needs neither torch nor Megatron."""

import importlib.util
import json
import pkgutil
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

import megatron_seams
from megatron_seams.upstream.locate import importable_megatron
from seam_support import install_plugin, manifest_table, registry, run_python, source_plugin

#: Runs a command as `registry` does and appends what was imported, whatever the exit code.
PROGRAM = """
import atexit, json, sys

def report():
    with open(sys.argv_report, "w") as file:
        json.dump(sorted(sys.modules), file)

sys.argv_report, *sys.argv[1:] = sys.argv[1:]
atexit.register(report)
from megatron_seams.cli import main
main()
"""

#: A package that says, by a file, that it was run, and then fails.
TRAP = """
open({mark!r}, "a").write(__name__ + "\\n")
raise RuntimeError("a plugin was imported")
"""


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with plugins whose every module is a trap, and the file that they would write."""
    site, mark = tmp_path / "site", tmp_path / "imported"
    code = TRAP.format(mark=str(mark))
    manifests = {
        "acme_traps.kda": manifest_table("kda", "kda"),
        "acme_traps.memory": manifest_table("memory", "recall", placement="embedding"),
    }
    install_plugin(site, "acme-traps", manifests, code=code)
    install_plugin(site, "acme-trap", {"acme_trap": manifest_table("gla", "gla")}, code=code)
    return site, mark


def trapped_source(folder: Path, mark: Path) -> tuple[Path, Path]:
    """A source tree and a wheel, neither installed, whose every module is a trap."""
    code = TRAP.format(mark=str(mark))
    tree = folder / "tree"
    source_plugin(tree, "acme-tree", {"acme_tree": manifest_table("tree", "tree")}, code=code)
    for name in ("setup.py", "conftest.py", "hatch_build.py"):  # what a build or a test would run
        (tree / name).write_text(code)
    site = folder / "unpacked"
    install_plugin(site, "acme-wheel", {"acme_wheel": manifest_table("wheel", "wheel")}, code=code)
    archive = shutil.make_archive(str(folder / "acme_wheel-1.0-py3-none-any"), "zip", site)
    return tree, Path(archive).rename(folder / "acme_wheel-1.0-py3-none-any.whl")


RECIPE = """
schema = 1
[model]
name = "trapped"
pattern = "MK"
depth = 8
[dialect.tokens]
K = "kda"
[[features]]
family = "recall"
[megatron]
hidden_size = 64
"""


def imported(site: Path, cwd: Path, *arguments: str | Path, code: int = 0) -> set[str]:
    """The modules that a command imported."""
    report = cwd / "modules.json"
    done = run_python("-c", PROGRAM, report, *arguments, path=[site], cwd=cwd, code=code)
    assert done.stdout
    return set(json.loads(report.read_text()))


def heavy(modules: Iterable[str]) -> list[str]:
    tops = (
        "torch",
        "megatron",
        "acme_traps",
        "acme_trap",
        "acme_tree",
        "acme_wheel",
        "transformer_engine",
        "numpy",
    )
    plugins = ("megatron_seams_", "megatron_seams.runtime", "megatron_seams.runtime.plugins")
    return sorted(m for m in modules if m.partition(".")[0] in tops or m.startswith(plugins))


def test_no_command_that_reads_imports_torch_megatron_or_a_plugin(
    trapped: tuple[Path, Path], tmp_path: Path
) -> None:
    site, mark = trapped
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    receipt = tmp_path / "receipt.json"
    # Where the checks are not of what is installed: the same traps as a source tree and as a wheel.
    tree, wheel = trapped_source(tmp_path, mark)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.megatron-seams.policy]\nmegatron-core = ">=0.17"\n'
    )
    hand, _ = importable_megatron()
    assert hand is not None
    megatron = hand.origin
    for arguments in (
        ("list", "--owners"),
        ("list", "--json"),
        ("resolve", recipe, "--receipt", receipt),
        ("resolve", recipe, "--json"),
        ("explain", "K", "--recipe", recipe),
        ("explain", "kda"),
        ("surface",),
        ("verify", receipt),
        ("preview", megatron, recipe),
        ("report", recipe, "--out", tmp_path / "page.html"),
        ("check",),
        ("check", tree, wheel),
        ("docs",),
        ("docs", "errors"),
        ("--help",),
    ):
        modules = imported(site, tmp_path, *arguments)
        assert "megatron_seams.cli" in modules
        assert heavy(modules) == [], arguments
        assert not mark.exists(), (arguments, mark.read_text())


#: Libraries and modules of our own that a `registry list` does not need.
NOT_FOR_A_LISTING = {
    *("jinja2", "pathspec", "pluggy", "rich"),
    *(
        f"megatron_seams.{name}"
        for name in (
            *("governance.gate", "governance.preview", "governance.workspace"),
            *("planning.plan", "planning.resolver", "recipes.recipe", "records.receipt", "report"),
            "upstream.settings",
        )
    ),
}


def test_a_listing_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_plugin(site, "acme-kda", {"acme_kda": manifest_table("kda", "kda")})
    modules = imported(site, tmp_path, "list", "--owners", "--json")
    assert "megatron_seams.seams.discovery" in modules
    assert not modules & NOT_FOR_A_LISTING
    # A name that is not there would never be loaded.
    assert not [name for name in NOT_FOR_A_LISTING if importlib.util.find_spec(name) is None]
    assert {"megatron_seams.recipes.recipe", "rich"} <= imported(site, tmp_path, "resolve", "M")


def test_a_listing_in_a_workspace_reads_recipes_where_one_gives_a_reason(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_plugin(site, "acme-kda", {"acme_kda": manifest_table("kda", "kda")})
    (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams.policy]\n")
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "model.toml"
    reason = '{}\nseam = "kda"\nreason = "It is new."\nreview-by = 2027-05-01\n'
    for table, is_read in (
        ("", False),
        (reason.format("[[justify]]"), True),
        (reason.format('[["\\u006austify"]]'), True),
    ):
        recipe.write_text(RECIPE + table)
        modules = imported(site, tmp_path, "list", "--owners", "--json") & NOT_FOR_A_LISTING
        read = {"megatron_seams.recipes.recipe"} if is_read else set()
        assert modules == {"megatron_seams.governance.workspace", *read}


def test_the_trap_does_go_off_when_it_is_stepped_on(
    trapped: tuple[Path, Path], tmp_path: Path
) -> None:
    site, mark = trapped
    done = run_python("-c", "import acme_traps.kda", path=[site], cwd=tmp_path, code=1)
    assert "a plugin was imported" in done.stderr
    assert mark.read_text() == "acme_traps\n"


BLOCKED = """
import importlib, importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "megatron", "transformer_engine"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def planner_modules() -> list[str]:
    found = pkgutil.walk_packages(megatron_seams.__path__, "megatron_seams.")
    return sorted(
        info.name
        for info in found
        if not info.name.startswith("megatron_seams.runtime") and not info.name.endswith("__main__")
    )


def test_every_module_of_the_planner_imports_where_torch_and_megatron_cannot_be(
    tmp_path: Path,
) -> None:
    modules = planner_modules()
    assert len(modules) > 20
    run_python("-c", BLOCKED, *modules, cwd=tmp_path, code=0)


def test_the_planner_works_where_there_is_no_megatron_at_all(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path = [p for p in sys.path if p];"
        "from megatron_seams.upstream import locate; locate._importable_folder = lambda: None;"
        "sys.argv[1:] = ['list', '--json']; from megatron_seams.cli import main; main()"
    )
    done = run_python("-c", program, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["findings"][0]["error"] == "MegatronMissing"
    assert found["megatron_core"]["version"] is None
    assert not [row for row in found["families"] if row["native_symbol"]]


def test_a_namesake_of_megatron_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    trap = TRAP.format(mark=str(tmp_path / "imported"))
    for name in ("megatron", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(trap)
    done = registry("list", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "imported").exists()


def test_the_light_tests_are_collected_without_torch(repository: Path) -> None:
    done = run_python(
        *("-m", "pytest", "--light", "--collect-only", "-q", "-p", "no:cacheprovider"),
        cwd=repository,
        code=0,
    )
    assert "--light: a test imported" not in done.stdout
    assert "tests/test_light.py::" in done.stdout
