"""`registry check` fails closed: what it looked at, whose policy applies, seams of others."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_seams.governance.gate import check
from megatron_seams.governance.workspace import read_workspace
from seam_support import (
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    registry,
    source_plugin,
    toml,
)

RECIPE = {
    "schema": 1,
    "model": {"name": "a model", "pattern": "MK"},
    "dialect": {"tokens": {"K": "kda"}},
}
POLICY = "[tool.megatron-seams.policy]\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An environment with one published plugin, which has the seam ``kda``."""
    install_plugin(tmp_path / "site", "acme-kda", {"acme_kda": manifest_table("kda")})
    return tmp_path / "site"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a recipe that uses ``kda``, and no seam of its own."""
    folder = tmp_path / "workspace"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "kda.toml").write_text(toml(RECIPE))
    return folder


def looked(*arguments: str | Path, site: Path | None = None, cwd: Path, code: int | None) -> dict:
    """The gate's answer as JSON, with its verdicts as severity and code."""
    done = registry(
        "check", *arguments, "--format", "json", cwd=cwd, path=[site] if site else (), code=code
    )
    found = json.loads(done.stdout)
    own = [it for it in found["verdicts"] if it["subject"] != "mla"]  # of this repository
    return {
        "verdicts": sorted((it["severity"], it["code"]) for it in own),
        "next": [it["next"] for it in own],
        **found["looked_at"],
    }


def test_a_folder_with_nothing_is_a_warning_and_says_so(tmp_path: Path) -> None:
    done = registry("check", ".", cwd=tmp_path, code=0)
    assert "[SEAM-W02] something to check in" in done.stderr
    assert "check: 0 errors, 1 warning" in done.stdout
    assert (
        "looked at: 0 seams, 0 recipes, 0 receipts; owners: no CODEOWNERS; policy: none"
    ) in done.stdout


def test_a_folder_that_is_no_workspace_and_holds_no_seam_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(POLICY)
    (tmp_path / "plugins").mkdir()
    done = registry("check", "plugins", cwd=tmp_path, code=1)
    assert "[SEAM-D02] the seams of" in done.stderr
    assert "neither recipes nor receipts" in done.stdout


@pytest.mark.parametrize("table", ["", POLICY, '[project]\nname = "w"\n'])
def test_a_broken_recipe_is_an_error_with_and_without_a_table(table: str, workspace: Path) -> None:
    (workspace / "recipes" / "kda.toml").write_text("schema = 1\n[model]\nname = 3\n")
    if table:
        (workspace / "pyproject.toml").write_text(table)
    found = looked(".", cwd=workspace, code=1)
    assert ("error", "SEAM-C01") in found["verdicts"]
    assert (found["recipes"], found["seams"]) == (1, 0)


def test_a_receipt_is_verified_without_a_table_too(workspace: Path) -> None:
    (workspace / "receipts").mkdir()
    (workspace / "receipts" / "kda.json").write_text("{}")
    shutil.rmtree(workspace / "recipes")
    found = looked(".", cwd=workspace, code=1)
    assert found["verdicts"] == [("error", "SEAM-V01")]
    assert (found["recipes"], found["receipts"]) == (0, 1)


def test_the_tree_without_a_table_is_the_repository(workspace: Path) -> None:
    subprocess.run(["git", "init", "--quiet", workspace], check=True)
    (workspace / "inner").mkdir()
    assert read_workspace(workspace / "inner").root == workspace
    assert read_workspace(workspace.parent).root == workspace.parent


def test_a_folder_that_nothing_marks_as_a_workspace_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a home or a disk."""
    searched: list[Path] = []

    def search(root: Path) -> dict:
        searched.append(root)
        return {}

    monkeypatch.setattr("megatron_seams.governance.gate.seam_folders", search)
    check(environment(make_seam()), read_workspace(tmp_path))
    assert searched == []
    (tmp_path / ".git").mkdir()
    check(environment(make_seam()), read_workspace(tmp_path))
    assert searched == [tmp_path]


def test_a_workspace_of_published_plugins_is_clean_and_the_same_for_hook_and_ci(
    workspace: Path, site: Path
) -> None:
    """``check`` looks at what is installed, ``check .`` at the tree: as of the seam, they agree."""
    (workspace / "pyproject.toml").write_text(POLICY + 'external = ["kda"]\nallow = ["kda"]\n')
    tree = looked(".", site=site, cwd=workspace, code=0)
    assert tree["verdicts"] == []
    assert (tree["seams"], tree["external"], tree["recipes"]) == (1, 1, 1)
    # The other seams that are installed here, this repository's own, have no source in the tree,
    # and decide the exit code.
    installed = looked("--workspace", workspace, site=site, cwd=workspace, code=None)
    assert installed["external"] == 1
    assert {code for _, code in installed["verdicts"]} <= {"SEAM-O05", "SEAM-R13"}


def test_require_codeowners_asks_nothing_of_external_seams(workspace: Path, site: Path) -> None:
    policy = POLICY + 'require-codeowners = true\nexternal = ["kda"]\n'
    (workspace / "pyproject.toml").write_text(policy)
    (workspace / "CODEOWNERS").write_text("* @acme/models\n")
    assert looked(".", site=site, cwd=workspace, code=0)["verdicts"] == []


def test_an_installed_seam_that_is_not_named_as_external_is_the_next_step(
    workspace: Path, site: Path
) -> None:
    (workspace / "pyproject.toml").write_text(POLICY)
    found = looked(".", site=site, cwd=workspace, code=1)
    assert found["verdicts"] == [("error", "SEAM-R01")]
    assert found["next"] == ['add "kda" to [tool.megatron-seams.policy] external']


def test_an_external_seam_that_is_missing_or_here_is_an_error(workspace: Path) -> None:
    (workspace / "pyproject.toml").write_text(POLICY + 'external = ["gone", "kda"]\n')
    source_plugin(workspace / "kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    (workspace / "CODEOWNERS").write_text("* @acme/layers\n")
    done = registry("check", ".", cwd=workspace, code=1)
    assert "'gone' as a seam of another workspace" in done.stderr
    assert "no such seam is installed here" in done.stderr
    assert f"its source is {workspace / 'kda' / 'src' / 'acme_kda'}" in done.stderr
    assert done.stderr.count("[SEAM-W01]") == 2


def test_a_tree_without_codeowners_is_a_warning_with_and_without_a_table(tmp_path: Path) -> None:
    source_plugin(tmp_path, "acme-kda", {"acme_kda": manifest_table("kda")})
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert looked(".", cwd=tmp_path, code=0)["verdicts"] == [("warning", "SEAM-O05")]


# --- whose policy ------------------------------------------------------------------------------


def test_the_policy_and_the_owners_are_those_of_the_tree_that_is_checked(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, owner in ((here, "@acme/here"), (there, "@acme/layers")):
        folder.mkdir()
        (folder / "pyproject.toml").write_text(POLICY + 'allow = ["gla"]\n')
        (folder / "CODEOWNERS").write_text(f"* {owner}\n")
    (there / "pyproject.toml").write_text(POLICY + 'allow = ["kda"]\n')
    source_plugin(there / "kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    found = looked(there, cwd=here, code=0)
    assert found["verdicts"] == []
    assert found["policy"] == str(there / "pyproject.toml")
    assert found["codeowners"] == str(there / "CODEOWNERS")
    named = looked(there, "--workspace", here, cwd=here, code=0)
    assert ("warning", "SEAM-R13") in named["verdicts"]


def test_folders_of_two_workspaces_are_refused_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(POLICY)
    done = registry("check", "one", "two", cwd=tmp_path, code=2)
    assert "SEAM-W01" in done.stderr
    assert "name one with --workspace" in done.stderr
