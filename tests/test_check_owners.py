"""`registry check`, who answers: CODEOWNERS, review dates, allowlists."""

import datetime
from pathlib import Path

import pytest

from megatron_seams.errors import ExitCode
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.governance.gate import Gate, check
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.seams.allowlist import VARIABLE
from megatron_seams.seams.source_trees import discover_in
from seam_support import (
    TODAY,
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    registry,
    source_plugin,
    toml,
)

WORKSPACE = '[tool.megatron-seams.policy]\nmegatron-core = ">=0.17"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A workspace with one plugin, ``plugins/kda``, whose seam is @acme/layers's."""
    (tmp_path / "pyproject.toml").write_text(WORKSPACE)
    source_plugin(tmp_path / "plugins" / "kda", "acme-kda", {"acme_kda": manifest_table("kda")})
    (tmp_path / "plugins" / "kda" / "src" / "acme_kda" / "plugin.py").write_text("")
    return tmp_path


def judged(tree: Path, codeowners: str | None = None, policy: str = "", **options: object) -> Gate:
    """The gate of a source tree, on a Megatron like 0.19."""
    if codeowners is not None:
        (tree / "CODEOWNERS").write_text(codeowners)
    (tree / "pyproject.toml").write_text(WORKSPACE + policy)
    found = discover_in([tree / "plugins"])
    made = environment(*found.seams, broken=found.broken)
    options.setdefault("today", TODAY)
    return check(made, read_workspace(tree), codeowners=find_codeowners(tree), **options)  # type: ignore[arg-type]


def findings(gate: Gate) -> list[tuple[str, str, str | None, int | None]]:
    """Severity, cause, file and line of each verdict."""
    return [
        (one.severity, type(one.finding).__name__, one.finding.file, one.finding.line)
        for one in gate.verdicts
    ]


# --- CODEOWNERS -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/plugins/kda/ @acme/layers\n",
        "* @acme/core\n/plugins/ @Acme/Layers # theirs\n",
        "/plugins/ @acme/core\n/plugins/kda @acme/core @acme/layers\n",
        "seam.toml @acme/layers\n*.py @acme/layers\n",
        "/plugins/kda/ @acme/layers\n/plugins/kda2/ @acme/core\n/plugins/* @acme/core\n",
    ],
)
def test_an_owner_who_owns_the_folder_is_no_finding(text: str, tree: Path) -> None:
    assert findings(judged(tree, text)) == []


@pytest.mark.parametrize(
    ("text", "cause", "line", "names"),
    [
        ("/core/ @acme/core\n", "OwnerMissing", None, ["no line matches"]),
        ("/plugins/kda/\n", "OwnerMissing", 1, ["nobody"]),
        ("* @acme/core\n", "OwnerDiffers", 1, ["line 1", "@acme/core"]),
        ("\n# who\n/plugins/kda/ @acme @acme/layer\n", "OwnerDiffers", 3, ["@acme/layer"]),
        (
            "/plugins/kda/ @acme/layers\n* @acme/core\n",
            "OwnerShadowed",
            2,
            ["overrules line 1", "below line 2"],
        ),
        (
            "/plugins/kda/ @acme/layers\n\n# the section of another team\n/plugins/** @acme/core\n",
            "OwnerShadowed",
            4,
            ["`/plugins/** @acme/core`"],
        ),
        (
            "/plugins/kda/ @acme/layers\n*.py @acme/python\n",
            "OwnerShadowed",
            2,
            ["plugins/kda/src/acme_kda/__init__.py and 1 more"],
        ),
        ("/plugins/kda/ @acme/layers\n/plugins/kda/\n", "OwnerShadowed", 2, ["nobody"]),
    ],
)
def test_a_missing_shadowed_or_different_owner_is_named_with_file_and_line(
    text: str, cause: str, line: int | None, names: list[str], tree: Path
) -> None:
    gate = judged(tree, text)
    assert findings(gate) == [("error", cause, str(tree / "CODEOWNERS"), line)]
    assert gate.exit_code is ExitCode.FINDINGS
    text_ = str(gate.verdicts[0].finding)
    for part in [*names, "@acme/layers", "seam 'kda' of acme-kda 1.0"]:
        assert part in text_


def test_each_line_that_takes_files_away_is_one_finding(tree: Path) -> None:
    gate = judged(tree, "* @acme/core\n/plugins/kda/ @acme/layers\n*.py @b\nseam.toml @c\n")
    assert sorted(findings(gate)) == [
        ("error", "OwnerShadowed", str(tree / "CODEOWNERS"), 3),
        ("error", "OwnerShadowed", str(tree / "CODEOWNERS"), 4),
    ]


def test_a_folder_with_a_space_is_advised_as_it_must_be_written(tree: Path) -> None:
    (tree / "plugins" / "kda").rename(tree / "plugins" / "our kda")
    (finding,) = (one.finding for one in judged(tree, "* @acme/core\n").verdicts)
    (line,) = [line for line in finding.next.split("`") if line.startswith("/")]
    assert findings(judged(tree, f"* @acme/core\n{line}\n")) == []


def test_a_line_that_github_skips_gives_nothing_and_is_said(tree: Path) -> None:
    gate = judged(tree, "* @acme/core\n/plugins/kda/ acme/layers\n")
    assert findings(gate) == [
        ("error", "OwnerDiffers", str(tree / "CODEOWNERS"), 1),
        ("warning", "CodeownersInvalid", str(tree / "CODEOWNERS"), 2),
    ]


@pytest.mark.parametrize(("required", "severity"), [("true", "error"), ("false", "warning")])
def test_a_seam_from_elsewhere_is_owned_elsewhere(required: str, severity: str, tree: Path) -> None:
    (tree / "CODEOWNERS").write_text("* @acme/layers\n")
    (tree / "pyproject.toml").write_text(f"{WORKSPACE}require-codeowners = {required}\n")
    installed = environment(make_seam("gla", "gla"), make_seam("kda"))
    gate = check(installed, read_workspace(tree), codeowners=find_codeowners(tree), today=TODAY)
    (verdict,) = gate.verdicts
    assert (verdict.severity, type(verdict.finding).__name__) == (severity, "OwnedElsewhere")
    assert verdict.finding.subject == "gla"  # kda's source is in the tree, by its name


@pytest.mark.parametrize(("required", "severity"), [("true", "error"), ("false", "warning")])
def test_a_workspace_without_codeowners_is_told_so(
    required: str, severity: str, tree: Path
) -> None:
    gate = judged(tree, policy=f"require-codeowners = {required}\n")
    (verdict,) = gate.verdicts
    assert (verdict.severity, type(verdict.finding).__name__) == (severity, "CodeownersInvalid")


def test_what_is_installed_or_built_in_the_tree_is_no_source(tree: Path) -> None:
    """A virtual environment inside the workspace holds the seams that others own."""
    site = tree / ".venv" / "lib" / "site-packages"
    install_plugin(site, "acme-gla", {"acme_gla": manifest_table("gla", "gla")})
    (tree / "plugins" / "kda" / "build" / "acme_kda").mkdir(parents=True)
    (tree / "plugins" / "kda" / "build" / "acme_kda" / "seam.toml").write_text(
        toml(manifest_table("kda"))
    )
    text = "/plugins/kda/src/ @acme/layers\n"
    assert findings(judged(tree, text)) == []
    (tree / "CODEOWNERS").write_text(text)
    done = registry("check", cwd=tree, path=[site], code=0)
    assert "SEAM-O04" in done.stderr


# --- review dates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "severity"),
    [(61, None), (60, "warning"), (1, "warning"), (0, "warning"), (-1, "error"), (-400, "error")],
)
def test_a_review_is_asked_for_sixty_days_ahead_and_must_not_be_missed(
    left: int, severity: str | None, tree: Path
) -> None:
    by = make_seam().manifest.seam.review_by
    gate = judged(tree, "* @acme/layers\n", today=by - datetime.timedelta(days=left))
    manifest = tree / "plugins" / "kda" / "src" / "acme_kda" / "seam.toml"
    line = manifest.read_text().splitlines().index(f"review-by = {by}") + 1
    expected = [(severity, "ReviewDue", str(manifest), line)] if severity else []
    assert findings(gate) == expected


@pytest.mark.parametrize(
    ("tracking", "asks"),
    [
        (["NVIDIA/Megatron-LM#7", "NVIDIA/Megatron-LM#8"], "#7, NVIDIA/Megatron-LM#8)"),
        ([], "of which there was none"),
    ],
)
def test_a_review_asks_for_upstream_s_changes_again(
    tracking: list[str], asks: str, tree: Path
) -> None:
    table = manifest_table("kda", accepts={"tracking": tracking})
    (tree / "plugins" / "kda" / "src" / "acme_kda" / "seam.toml").write_text(toml(table))
    gate = judged(tree, "* @acme/layers\n", today=make_seam().manifest.seam.review_by)
    (verdict,) = gate.verdicts
    assert "upstream's changes again" in verdict.finding.next
    assert asks in verdict.finding.next


def test_a_review_date_may_be_the_last_there_is(tree: Path) -> None:
    table = manifest_table("kda")
    table["seam"]["review-by"] = datetime.date.max
    (tree / "plugins" / "kda" / "src" / "acme_kda" / "seam.toml").write_text(toml(table))
    assert findings(judged(tree, "* @acme/layers\n")) == []


# --- allowlists -------------------------------------------------------------------------------


def test_a_seam_that_is_not_allowed_is_a_warning_with_who_says_so(tree: Path) -> None:
    gate = judged(tree, "* @acme/layers\n", policy='allow = ["gla"]\n')
    (verdict,) = gate.verdicts
    assert (verdict.severity, type(verdict.finding).__name__) == ("warning", "NotAllowed")
    assert "[tool.megatron-seams.policy] allow allows only gla" in verdict.finding.found
    assert findings(judged(tree, "* @acme/layers\n", policy='allow = ["gla", "kda"]\n')) == []
    (tree / "CODEOWNERS").write_text("* @acme/layers\n")
    (tree / "pyproject.toml").write_text(WORKSPACE)
    done = registry("check", "plugins", cwd=tree, code=0, **{VARIABLE: "gla,other"})
    assert f"{VARIABLE} allows only gla, other" in done.stderr
