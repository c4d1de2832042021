"""`registry check` on what is not installed, and on what a workspace has committed to."""

import datetime
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import ExitCode
from megatron_seams.governance.gate import check
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.records.receipt import make_receipt
from megatron_seams.seams.discovery import Discovery
from megatron_seams.seams.source_trees import discover_in
from seam_support import (
    TODAY,
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    plan,
    recipe,
    registry,
    run_python,
    source_plugin,
    toml,
)

YESTERDAY = TODAY - datetime.timedelta(days=1)
TABLE = "[tool.megatron-seams]\n"


def wheel(folder: Path, name: str, *arguments: Any, **options: Any) -> Path:
    """A wheel with a plugin laid out as :func:`install_plugin` does."""
    site = folder / f"{name}-files"
    install_plugin(site, *arguments, **options)
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for part in sorted(site.rglob("*")):
            archive.write(part, part.relative_to(site).as_posix())
    return file


def seams(found: Discovery) -> list[tuple[str, str, str]]:
    return [(seam.name, seam.distribution, seam.version) for seam in found.seams]


def broken(found: Discovery) -> dict[str, list[str]]:
    return {one.name: [type(fault).__name__ for fault in one.faults] for one in found.broken}


# --- trees and wheels -------------------------------------------------------------------------


def test_seams_of_a_tree_and_of_wheels_are_found_together_in_one_order(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    two = {
        "acme_two.kda": manifest_table("kda"),
        "acme_two.memory": manifest_table("memory", "engram", placement="embedding"),
    }
    source_plugin(tree / "plugins" / "two", "acme-two", two, version="2.5")
    built = wheel(tmp_path, "acme_gla", "acme-gla", {"acme_gla": manifest_table("gla", "gla")})
    for paths in ([tree, built], [built, tree], [built, tree, tree / "plugins", built]):
        found = discover_in(paths)
        assert seams(found) == [
            ("gla", "acme-gla", "1.0"),
            ("kda", "acme-two", "2.5"),
            ("memory", "acme-two", "2.5"),
        ]
        assert found.broken == ()
    assert {"kda", "gla"} <= {family.name for family in found.families}


@pytest.mark.parametrize(
    ("place", "tool"),
    [
        ("src", {}),
        (".", {}),
        ("lib", {"hatch": {"build": {"targets": {"wheel": {"packages": ["lib/acme_kda"]}}}}}),
        ("py", {"setuptools": {"package-dir": {"": "py"}}}),
        ("code", {"setuptools": {"packages": {"find": {"where": ["code"]}}}}),
    ],
)
def test_a_package_is_found_where_its_build_finds_it(
    place: str, tool: dict[str, Any], tmp_path: Path
) -> None:
    table = {
        "project": {"name": "acme-kda", "entry-points": {"megatron_seams": {"kda": "acme_kda"}}},
        "tool": tool,
    }
    (tmp_path / "pyproject.toml").write_text(toml(table))
    package = tmp_path / place / "acme_kda"
    package.mkdir(parents=True)
    (package / "seam.toml").write_text(toml(manifest_table("kda")))
    assert seams(discover_in([tmp_path])) == [("kda", "acme-kda", "of no fixed version")]


def test_two_projects_of_a_tree_that_claim_one_name_are_both_broken(tmp_path: Path) -> None:
    for name in ("one", "two"):
        source_plugin(tmp_path / name, f"acme-{name}", {f"acme_{name}": manifest_table("kda")})
    source_plugin(tmp_path / "three", "acme-three", {"acme_three": manifest_table("gla", "gla")})
    found = discover_in([tmp_path])
    assert [one.name for one in found.seams] == ["gla"]
    assert [one.distribution for one in found.broken] == ["acme-one", "acme-two"]
    (fault,) = found.findings
    assert (fault.code, fault.key) == ("SEAM-D06", "seam.name")
    assert fault.file == str(tmp_path / "one" / "src" / "acme_one" / "seam.toml")
    assert "acme-one 1.0 (acme_one) and acme-two 1.0 (acme_two)" in fault.found


def test_a_file_or_folder_without_a_seam_is_a_finding(tmp_path: Path) -> None:
    empty, damaged, cut = tmp_path / "empty", tmp_path / "damaged.whl", tmp_path / "cut.whl"
    empty.mkdir()
    damaged.write_text("no archive")
    whole = wheel(tmp_path, "acme_kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    cut.write_bytes(whole.read_bytes()[:-60])
    bare = wheel(tmp_path, "acme_bare", "acme-bare", {"acme_bare": None}, entry_points={})
    found = discover_in([empty, damaged, cut, bare, whole, tmp_path / "nowhere"])
    assert seams(found) == [("kda", "acme-kda", "1.0")]
    assert broken(found) == {
        "acme_bare-1.0-py3-none-any.whl": ["ManifestMissing"],
        "cut.whl": ["ManifestUnreadable"],
        "damaged.whl": ["ManifestUnreadable"],
        "empty": ["ManifestMissing"],
        "nowhere": ["ManifestMissing"],
    }
    said = {
        Path(fault.file or "").name: fault.found for one in found.broken for fault in one.faults
    }
    assert "no project or wheel in it" in said["empty"]
    assert said["nowhere"] == "there is no such folder or file"


@pytest.mark.parametrize("form", ["text", "github", "sarif"])
def test_a_link_that_leads_to_itself_is_a_finding_in_every_format(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    done = CliRunner().invoke(cli, ["check", "loop", "--format", form])
    assert done.exit_code == ExitCode.FINDINGS, done.output
    assert "SEAM-D02" in done.output


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("setup.cfg", "[options.entry_points]\nmegatron_seams =\n    a = acme\n", "setup.cfg"),
        (
            "setup.py",
            'setup(entry_points={"megatron_seams": ["a = acme"]}, packages=["megatron_seams_a"])',
            "setup.py",
        ),
        (
            "pyproject.toml",
            '[tool.poetry.plugins.megatron_seams]\na = "acme"\n',
            "[tool.poetry.plugins] of pyproject.toml",
        ),
    ],
)
def test_entry_points_that_only_a_build_would_tell_are_a_finding(
    name: str, text: str, where: str, tmp_path: Path
) -> None:
    source_plugin(tmp_path / "good", "acme-good", {"acme_good": manifest_table("good")})
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / name).write_text(text)
    (tmp_path / "bystander").mkdir()
    (tmp_path / "bystander" / "setup.cfg").write_text("[options]\npackages = megatron_seams_b\n")
    (tmp_path / "bystander" / "setup.py").write_text('setup(packages=["megatron_seams"])\n')
    found = discover_in([tmp_path])
    assert [seam.name for seam in found.seams] == ["good"]
    (only,) = found.broken
    (fault,) = only.faults
    assert fault.code == "SEAM-D01"
    assert fault.found == f"its entry points of the group megatron_seams stand in {where}"
    assert fault.file == str(tmp_path / "older" / name)
    assert "build the wheel" in fault.next


def test_the_gate_judges_a_tree_that_is_not_installed(tmp_path: Path) -> None:
    """Ranges, owners and the way to remove a seam are those of the source."""
    source_plugin(
        tmp_path / "plugins" / "latent",
        "acme-latent",
        {
            "acme_latent": manifest_table(
                "latent", "mla", fallback="native", accepts={"symbol-name": "MLA"}
            )
        },
    )
    source_plugin(
        tmp_path / "plugins" / "kda",
        "acme-kda",
        {"acme_kda": manifest_table("kda", requires="<0.18", owner="@acme/others")},
    )
    (tmp_path / "CODEOWNERS").write_text("* @acme/layers\n")
    done = registry("check", ".", cwd=tmp_path, code=1)
    codes = re.findall(r"^\[(SEAM-\w+)\]", done.stderr, re.MULTILINE)
    assert codes == ["SEAM-D08", "SEAM-D09", "SEAM-O03"]
    assert f"delete {tmp_path}/plugins/latent/src/acme_latent and its entry point" in done.stderr
    assert registry("list", "--json", cwd=tmp_path).stdout.count("acme-") == 0


# --- recipes and receipts ---------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a recipe that needs the seam ``kda``, and the receipt of its plan."""
    (tmp_path / "pyproject.toml").write_text(TABLE)
    for folder in ("recipes", "receipts"):
        (tmp_path / folder).mkdir()
    asked = recipe("MK", tokens={"K": "kda"})
    table = {
        "schema": 1,
        "model": {"name": "test model", "pattern": "MK"},
        "dialect": {"tokens": {"K": "kda"}},
    }
    (tmp_path / "recipes" / "kda.toml").write_text(toml(table))
    made = plan(asked, environment(make_seam()))
    (tmp_path / "receipts" / "kda.json").write_text(make_receipt(made, asked))
    return tmp_path


def judged(workspace: Path, *seams: Any, **options: Any) -> list[tuple[str, str, int | None]]:
    """Cause, file and line of each error about what is committed."""
    gate = check(environment(*seams), read_workspace(workspace), today=TODAY, **options)
    committed = [one.finding for one in gate.verdicts if one.severity == "error"]
    return [
        (type(one).__name__, Path(one.file or "").relative_to(workspace).as_posix(), one.line)
        for one in committed
    ]


def test_what_is_committed_holds_and_is_not_asked_of_single_seams(workspace: Path) -> None:
    assert judged(workspace, make_seam()) == []
    assert judged(workspace, whole=False) == []


@pytest.mark.parametrize("name", ["kda.toml", "another.toml"])
def test_a_recipe_that_changed_makes_its_receipt_a_finding(name: str, workspace: Path) -> None:
    old = workspace / "recipes" / "kda.toml"
    changed = old.read_text() + "[seams.kda]\nheads = 4\n"
    old.unlink()
    (workspace / "recipes" / name).write_text(changed)
    gate = check(environment(make_seam()), read_workspace(workspace), today=TODAY)
    (finding,) = [one.finding for one in gate.verdicts if one.severity == "error"]
    assert (finding.code, finding.key) == ("SEAM-V02", "recipe.seams.kda")
    assert finding.file == str(workspace / "receipts" / "kda.json")
    (workspace / "recipes" / name).write_text(changed.partition("[seams")[0])
    assert judged(workspace, make_seam()) == []


def test_of_two_recipes_of_one_name_the_receipt_is_of_the_one_it_has(workspace: Path) -> None:
    old = workspace / "recipes" / "kda.toml"
    old.rename(workspace / "recipes" / "b.toml")
    (workspace / "recipes" / "a.toml").write_text(
        (workspace / "recipes" / "b.toml").read_text() + "[seams.kda]\nheads = 4\n"
    )
    assert judged(workspace, make_seam()) == []


def test_a_recipe_that_resolves_no_more_is_named_with_the_line_of_its_pattern(
    workspace: Path,
) -> None:
    assert judged(workspace) == [
        ("NoProvider", "recipes/kda.toml", 5),
        ("ReceiptDiffers", "receipts/kda.json", None),
        ("NoProvider", "receipts/kda.json", None),
    ]


def test_a_receipt_of_another_release_or_edited_is_named(workspace: Path) -> None:
    assert judged(workspace, make_seam(version="2.0")) == [
        ("ReceiptDiffers", "receipts/kda.json", None)
    ]
    receipt = workspace / "receipts" / "kda.json"
    receipt.write_text(receipt.read_text().replace("test model", "best model"))
    assert judged(workspace, make_seam()) == [("ReceiptUnreadable", "receipts/kda.json", None)]


@pytest.mark.parametrize(
    ("override", "cause", "key"),
    [
        ({"reason": "faster", "expires": TODAY}, None, None),
        (
            {"reason": "faster", "expires": YESTERDAY},
            "OverrideInvalid",
            "override[0]",
        ),
        ({"reason": "  ", "expires": TODAY}, "RecipeInvalid", "override[0].reason"),
        ({"expires": TODAY}, "RecipeInvalid", "override[0].reason"),
        ({"reason": "faster"}, "RecipeInvalid", "override[0].expires"),
    ],
)
def test_an_override_has_a_reason_and_a_date_that_has_not_passed(
    override: dict[str, Any], cause: str | None, key: str | None, workspace: Path
) -> None:
    seam = make_seam("mine", "attention", fallback="native", accepts={"symbol-name": "ATTENTION"})
    shutil.rmtree(workspace / "receipts")
    (workspace / "recipes" / "kda.toml").unlink()
    table = {
        "schema": 1,
        "model": {"name": "test model", "pattern": "M*"},
        "override": [{"family": "attention", "seam": "mine", **override}],
    }
    file = workspace / "recipes" / "over.toml"
    file.write_text(toml(table))
    gate = check(environment(seam), read_workspace(workspace), today=TODAY)
    found = [one.finding for one in gate.verdicts if one.finding.file == str(file)]
    if cause is None:
        assert found == []
        return
    (fault,) = found
    assert (type(fault).__name__, fault.file, fault.key) == (cause, str(file), key)
    wanted = "reason" if key == "override[0].reason" and "reason" in override else "[[override]]"
    lines = file.read_text().splitlines()
    assert fault.line == next(n for n, text in enumerate(lines, 1) if text.startswith(wanted))


def test_a_recipe_that_is_known_to_be_refused_is_a_finding_once_it_resolves(
    workspace: Path,
) -> None:
    shutil.rmtree(workspace / "receipts")
    project = workspace / "pyproject.toml"
    project.write_text('[tool.megatron-seams.holds]\nrefused = ["recipes/k*.toml"]\n')
    assert judged(workspace) == []
    assert judged(workspace, make_seam()) == [("WorkspaceInvalid", "pyproject.toml", 2)]


@pytest.mark.parametrize("key", ["recipes", "refused", "receipts"])
@pytest.mark.parametrize("glob", ["recipe/*.toml", "", "/etc/*.toml", "recipes", "."])
def test_a_glob_that_names_no_file_is_a_finding(key: str, glob: str, workspace: Path) -> None:
    """A mistyped one would make the gate pass for ever."""
    project = workspace / "pyproject.toml"
    project.write_text(f'[tool.megatron-seams.holds]\n{key} = ["{glob}"]\n')
    assert ("WorkspaceInvalid", "pyproject.toml", 2) in judged(workspace, make_seam())


# --- this repository, pre-commit and the snippet ----------------------------------------------


def test_this_repository_passes_its_own_gate_as_a_tree(repository: Path) -> None:
    done = registry("check", ".", cwd=repository, code=0)
    assert "check: 0 errors" in done.stdout


def test_a_hook_of_pre_commit_runs_the_gate(repository: Path, tmp_path: Path) -> None:
    hooks, user = tmp_path / "hooks", tmp_path / "user"
    for folder in (hooks, user):
        subprocess.run(["git", "init", "--quiet", folder], check=True)
    shutil.copy(repository / ".pre-commit-hooks.yaml", hooks)
    project = user / "pyproject.toml"
    project.write_text('[tool.megatron-seams.policy]\nmegatron-core = ">=0.17"\n')
    settings = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "GIT_AUTHOR_NAME": "x",
        "GIT_AUTHOR_EMAIL": "x@example.com",
        "GIT_COMMITTER_NAME": "x",
        "GIT_COMMITTER_EMAIL": "x@example.com",
    }
    for arguments in (["add", "."], ["commit", "--quiet", "-m", "hooks"]):
        subprocess.run(["git", *arguments], cwd=hooks, env=settings, check=True)
    subprocess.run(["git", "add", "."], cwd=user, check=True)

    def hook() -> subprocess.CompletedProcess[str]:
        arguments = ("-m", "pre_commit", "try-repo", hooks, "registry-check", "--verbose")
        return run_python(*arguments, cwd=user, **settings)

    done = hook()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: 0 errors" in done.stdout
    project.write_text("[tool.megatron-seams]\nx = 1\n")
    subprocess.run(["git", "add", "."], cwd=user, check=True)  # it looks at what is staged
    done = hook()
    assert done.returncode == 1
    assert "SEAM-W01" in done.stdout
    assert "exit code: 2" in done.stdout


def test_the_snippet_for_continuous_integration_is_a_workflow_whose_check_runs(
    repository: Path, tmp_path: Path
) -> None:
    text = (repository / "docs" / "check.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(name:.*?)^```", text, re.MULTILINE | re.DOTALL)
    workflow = tmp_path / ".github" / "workflows" / "seams.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text(block)
    schema = ("--builtin-schema", "vendor.github-workflows")
    run_python("-m", "check_jsonschema", *schema, workflow, cwd=tmp_path, code=0)

    *_, command = re.findall(r"- run: (registry .*)$", block, re.MULTILINE)
    source_plugin(tmp_path / "kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    (tmp_path / "CODEOWNERS").write_text("* @acme/core\n")
    done = registry(*command.split()[1:], cwd=tmp_path, code=1)
    assert done.stdout.startswith("::error file=CODEOWNERS,line=1,title=SEAM-O03")
