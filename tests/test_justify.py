"""`[[justify]]`: why a seam stands where native does not: the gate requires it, `list` shows it."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.errors import Unjustified
from megatron_seams.governance.gate import check
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.receipt import make_receipt, read_receipt
from megatron_seams.records.verify import verify
from seam_support import (
    TODAY,
    Table,
    environment,
    install_plugin,
    make_seam,
    manifest_table,
    only,
    plan,
    reasons,
    recipe,
    registry,
    toml,
)

DAY = datetime.timedelta(days=1)
TRIAL = make_seam("trial", "kda", status="experiment")
SOUND = make_seam("sound", "gla")
WHERE = environment(TRIAL, SOUND)
ASKED: Table = {
    "tokens": {"K": "kda", "L": "gla"},
    "policy": {"experiments": ["trial"]},
}


def reason(seam: str = "trial", *, by: datetime.date = TODAY + 90 * DAY) -> Table:
    return {"seam": seam, "reason": f"Upstream has no {seam}.", "review-by": by}


def committed(folder: Path, entries: list[Table], **tables: Any) -> Path:
    """A workspace with one recipe, which uses an experiment and another seam."""
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text("[tool.megatron-seams.policy]\n")
    asked: Table = {
        "schema": 1,
        "model": {"name": "a model", "pattern": "MKL"},
        "dialect": {"tokens": ASKED["tokens"]},
        "policy": ASKED["policy"],
        **tables,
        **({"justify": entries} if entries else {}),
    }
    file = folder / "recipes" / "model.toml"
    file.write_text(toml(asked))
    return file


def judged(folder: Path, where: Environment = WHERE) -> list[tuple[str, str, str | None]]:
    gate = check(where, read_workspace(folder), today=TODAY)
    found = [it for it in gate.verdicts if type(it.finding).__name__ == "Unjustified"]
    assert all(it.finding.file == str(folder / "recipes" / "model.toml") for it in found)
    return [(it.severity, it.finding.subject, it.finding.key) for it in found]


def test_an_experiment_without_a_reason_is_an_error_and_another_seam_needs_none(
    tmp_path: Path,
) -> None:
    file = committed(tmp_path, [])
    assert judged(tmp_path) == [("error", "trial", "policy.experiments")]
    gate = check(WHERE, read_workspace(tmp_path), today=TODAY)
    (finding,) = (it.finding for it in gate.verdicts if it.finding.subject == "trial")
    assert finding.line == file.read_text().splitlines().index('experiments = ["trial"]') + 1
    committed(tmp_path, [reason("sound")])
    assert judged(tmp_path) == [("error", "trial", "policy.experiments")]
    committed(tmp_path, [reason()])
    assert judged(tmp_path) == []


@pytest.mark.parametrize(
    ("left", "severity"), [(61, None), (60, "warning"), (0, "warning"), (-1, "error")]
)
@pytest.mark.parametrize("seam", ["trial", "sound"])
def test_a_reason_is_given_anew_by_its_date(
    seam: str, left: int, severity: str | None, tmp_path: Path
) -> None:
    due = reason(seam, by=TODAY + left * DAY)
    entries = [due] if seam == "trial" else [reason(), due]
    committed(tmp_path, entries)
    key = f"justify[{len(entries) - 1}].review-by"
    assert judged(tmp_path) == ([(severity, seam, key)] if severity else [])


def test_an_experiment_that_is_pinned_needs_a_reason_too(tmp_path: Path) -> None:
    committed(tmp_path, [], policy={"pin": {"kda": "trial"}})
    assert judged(tmp_path) == [("error", "trial", "policy.pin.kda")]
    taken = {"family": "mamba", "seam": "trial", "reason": "Faster.", "expires": TODAY + DAY}
    committed(tmp_path, [], policy={}, override=[taken])
    assert judged(tmp_path) == [("error", "trial", "override[0].seam")]


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (-2, "it passed 2 days ago"),
        (-1, "it passed 1 day ago"),
        (0, "it is today"),
        (1, "it is in 1 day"),
    ],
)
def test_a_finding_says_how_far_the_date_is(left: int, found: str, tmp_path: Path) -> None:
    due = reason(by=TODAY + left * DAY)
    committed(tmp_path, [{**due, "reason": "Upstream\nhas no trial.\n"}])
    gate = check(WHERE, read_workspace(tmp_path), today=TODAY)
    (finding,) = (it.finding for it in gate.verdicts if it.finding.subject == "trial")
    assert finding.found == f"{found}; the reason given: Upstream has no trial."


def test_a_receipt_whose_recipe_is_not_committed_is_held_by_itself(tmp_path: Path) -> None:
    """And the next step of its message holds."""
    (tmp_path / "receipts").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams.policy]\n")
    file = tmp_path / "receipts" / "model.json"

    def found(*entries: Table) -> list[tuple[str, str, str | None]]:
        asked = recipe("MK", **ASKED, **({"justify": [*entries]} if entries else {}))
        if not file.exists():
            file.write_text(make_receipt(plan(asked, WHERE), asked))
        else:
            said = Acceptance(by="a test", reason="As the gate asks.", when=TODAY)
            accept(file, WHERE, said, recipe=asked)
        gate = check(WHERE, read_workspace(tmp_path), today=TODAY)
        unjustified = [it for it in gate.verdicts if isinstance(it.finding, Unjustified)]
        assert all(it.finding.file == str(file) for it in unjustified)
        assert all("registry accept RECEIPT --recipe" in it.finding.next for it in unjustified)
        return [(it.severity, it.finding.subject, it.finding.key) for it in unjustified]

    assert found() == [("error", "trial", "request.policy.experiments")]
    assert found(reason(by=TODAY - DAY)) == [("error", "trial", "request.justify[0].review-by")]
    assert found(reason()) == []
    # A committed recipe of its name answers for it.
    committed(tmp_path, [], model={"name": "a model", "pattern": "MK"})
    assert judged(tmp_path) == [("error", "trial", "policy.experiments")]


def test_an_experiment_that_is_installed_and_not_used_needs_none(tmp_path: Path) -> None:
    other = make_seam("other", "delta", status="experiment")
    committed(tmp_path, [reason()])
    assert judged(tmp_path, environment(TRIAL, SOUND, other)) == []


def test_a_reason_for_a_seam_that_the_plan_does_not_use_is_refused() -> None:
    from megatron_seams.errors import UnusedSetting

    asked = recipe("MK", justify=[reason(), reason("sound")], **ASKED)
    fault = only(reasons(asked, WHERE), UnusedSetting)
    assert fault.key == "justify[1].seam"
    assert fault.next == "remove [[justify]] for 'sound' from the recipe, or correct its seam"
    plan(recipe("MK", justify=[reason()], **ASKED), WHERE)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([reason(), reason()], "more for trial"),
        ([{**reason(), "reason": " "}], "expected a sentence"),
        ([{**reason(), "reason": "\u200b\u2060 "}], "nothing that can be seen"),
        ([{**reason(), "review-by": "soon"}], "expected a date"),
        ([{**reason(), "family": "kda"}], "unknown key"),
    ],
)
def test_an_entry_is_read_strictly(entries: list[Table], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        recipe("MK", justify=entries, **ASKED)


def test_a_reason_is_in_the_receipt_and_decides_nothing(tmp_path: Path) -> None:
    asked = recipe("MK", justify=[reason()], **ASKED)
    bare = recipe("MK", **ASKED)
    file = tmp_path / "receipt.json"
    file.write_text(make_receipt(plan(asked, WHERE), asked))
    body, back = read_receipt(file)
    assert back == asked
    kept = {"reason": "Upstream has no trial.", "review_by": str(TODAY + 90 * DAY)}
    assert body["plan"]["seams"]["trial"]["justified"] == kept
    assert verify(file, WHERE, today=TODAY) == ()
    assert verify(file, WHERE, today=TODAY + 400 * DAY) == ()
    (fault,) = verify(file, WHERE, today=TODAY, recipe=bare)
    assert fault.key == "recipe.justify"
    # A recipe without one has a receipt without a word of it.
    file.write_text(make_receipt(plan(bare, WHERE), bare))
    assert "justif" not in file.read_text()


def test_the_list_and_the_plan_show_it(tmp_path: Path) -> None:
    site = tmp_path / "site"
    table = manifest_table("trial", "kda", status="experiment")
    install_plugin(site, "acme-trial", {"acme_trial": table})
    file = committed(tmp_path, [reason()], model={"name": "a model", "pattern": "MK"})
    note = f"justified until {TODAY + 90 * DAY}: Upstream has no trial."
    shown = registry("list", cwd=tmp_path, path=[site]).stdout
    assert f"trial in model.toml, {note}" in shown
    listed = json.loads(registry("list", "--json", cwd=tmp_path, path=[site]).stdout)
    (row,) = (it for it in listed["families"] if it["family"] == "kda")
    assert row["seams"][0]["justified"] == [
        {
            "recipe": "model.toml",
            "reason": "Upstream has no trial.",
            "review_by": str(TODAY + 90 * DAY),
        }
    ]
    assert note in registry("resolve", file, cwd=tmp_path, path=[site], code=0).stdout
    # A reason of several lines is one, so that none of them looks like a row.
    lines = {**reason(), "reason": "Upstream has\n4  M  mamba  native\n"}
    file = committed(tmp_path, [lines], model={"name": "a model", "pattern": "MK"})
    for asked in (["list"], ["resolve", file]):
        shown = registry(*asked, cwd=tmp_path, path=[site], COLUMNS="200").stdout
        assert "Upstream has 4 M mamba native" in shown
