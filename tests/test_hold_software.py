"""`hold-software` of a workspace's policy: other versions are differences, and not information."""

import datetime
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from megatron_seams.base.canonical_json import json_text
from megatron_seams.errors import ReceiptKept, ReceiptUnreadable, Refusal
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.held import held
from megatron_seams.records.keep import keep_receipt
from megatron_seams.records.receipt import make_receipt, read_receipt, receipt_digest
from megatron_seams.records.software import software
from megatron_seams.records.verify import verify
from seam_support import environment, plan, recipe, registry, toml

HERE = environment()
ASKED = recipe("M*")
WHY = Acceptance(by="the reviewer", reason="Measured anew.", when=datetime.date(2026, 12, 1))
POLICY = '[tool.megatron-seams.policy]\nhold-software = ["torch", "mamba-ssm"]\n'


def receipt(file: Path, *held_here: str, **versions: str | None) -> Path:
    """A receipt of this environment that holds these names, written with those versions."""
    body = json.loads(make_receipt(plan(ASKED, HERE), ASKED, hold_software=held_here))
    body["software"] |= {name.replace("_", "-"): it for name, it in versions.items()}
    body["digest"] = receipt_digest(body)
    file.write_text(json_text(body), encoding="utf-8")
    return file


def found(file: Path, **settings: Any) -> dict[str | None, str]:
    """Key -> what is here, of every difference."""
    return {difference.key: difference.found for difference in verify(file, HERE, **settings)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "receipt.json"


def test_a_version_that_the_receipt_holds_is_a_difference_and_another_is_not(file: Path) -> None:
    receipt(file, "torch", "megatron-seams", torch="1.0", mamba_ssm="9.0")
    assert found(file) == {"software.torch": software()["torch"]}
    assert found(receipt(file, "torch", mamba_ssm="9.0")) == {}
    assert found(receipt(file, torch="1.0")) == {}


def test_what_is_not_installed_here_or_not_named_there_differs(file: Path) -> None:
    assert found(receipt(file, "mamba-ssm", mamba_ssm="9.0")) == {"software.mamba-ssm": "nothing"}
    body = json.loads(receipt(file, "torch").read_text())
    del body["software"]
    body["digest"] = receipt_digest(body)
    file.write_text(json_text(body))
    assert set(found(file)) == {"software.torch"}


def test_a_workspace_that_holds_more_than_the_receipt_asks_for_an_acceptance(file: Path) -> None:
    receipt(file, "torch", mamba_ssm="9.0")
    more = {"hold_software": ("mamba-ssm",)}
    assert found(file, **more) == {
        "hold_software": '["mamba-ssm", "torch"]',
        "software.mamba-ssm": "nothing",
    }
    # Where nothing runs, versions are not compared; that the receipt holds them is.
    assert set(found(file, **more, runs_here=False)) == {"hold_software"}
    accepted = accept(file, HERE, WHY, **more)
    assert {difference.key for difference in accepted} == {"hold_software", "software.mamba-ssm"}
    body, _ = read_receipt(file)
    assert body["hold_software"] == ["mamba-ssm", "torch"]
    assert body["software"] == software()
    assert found(file, **more) == {}
    assert accept(file, HERE, WHY, **more) == ()


def test_an_acceptance_and_a_second_writing_keep_what_is_held(file: Path) -> None:
    receipt(file, "torch", torch="1.0")
    with pytest.raises(ReceiptKept, match=r"software\.torch: 1\.0"):
        keep_receipt(file, plan(ASKED, HERE), ASKED)
    assert [it.key for it in accept(file, HERE, WHY)] == ["software.torch"]
    assert read_receipt(file)[0]["hold_software"] == ["torch"]
    keep_receipt(receipt(file, "torch"), plan(ASKED, HERE), ASKED, hold_software=("mamba-ssm",))
    assert read_receipt(file)[0]["hold_software"] == ["mamba-ssm", "torch"]
    keep_receipt(file, plan(ASKED, HERE), ASKED, replace=True)
    assert "hold_software" not in read_receipt(file)[0]


def test_a_checkpoint_of_another_version_loads_unless_either_receipt_holds_it(
    file: Path, tmp_path: Path
) -> None:
    def differing(saved: Path, run: Path) -> list[str | None]:
        faults = held(saved.read_text(), run.read_text(), "step 7")
        assert {fault.code for fault in faults} <= {"SEAM-V05"}
        return [fault.key for fault in faults]

    run, holding = receipt(tmp_path / "run.json"), receipt(tmp_path / "holding.json", "torch")
    assert differing(receipt(file, torch="1.0"), run) == []
    assert differing(receipt(file, torch="1.0"), holding) == ["software.torch"]
    assert differing(receipt(file, "torch", torch="1.0"), run) == ["software.torch"]
    assert differing(receipt(file, mamba_ssm="1.0"), holding) == []
    # An acceptance of the checkpoint's receipt takes it.
    saved = receipt(file, "torch", torch="1.0").read_text()
    accept(file, HERE, WHY)
    assert held(saved, file.read_text(), "step 7") == ()


@pytest.mark.parametrize("edit", [{"hold_software": "torch"}, {"hold_software": [1]}])
def test_names_that_cannot_be_compared_make_it_no_receipt(edit: Any, file: Path) -> None:
    body = json.loads(receipt(file).read_text()) | edit
    body["digest"] = receipt_digest(body)
    file.write_text(json_text(body))
    with pytest.raises(ReceiptUnreadable, match="lacks what a receipt holds"):
        read_receipt(file)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('["cuda"]', "expected one of megatron-seams, torch, transformer-engine, mamba-ssm; found"),
        ('["torch", "torch"]', "expected each name once"),
        ("true", "expected an array"),
    ],
)
def test_the_policy_is_strict(value: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.megatron-seams.policy]\nhold-software = {value}\n"
    )
    with pytest.raises(Refusal) as refused:
        read_workspace(tmp_path)
    (fault,) = refused.value.reasons
    assert fault.code == "SEAM-W01"
    assert str(fault.key).startswith("tool.megatron-seams.policy.hold-software")
    assert expected in fault.found


def test_on_the_command_line_the_policy_travels_with_the_receipt(
    tmp_path: Path, repository: Path
) -> None:
    workspace, node = tmp_path / "workspace", tmp_path / "node"
    for folder in (workspace / "recipes", workspace / "receipts", node):
        folder.mkdir(parents=True)
    model = {"schema": 1, "model": {"name": "m", "pattern": "M*"}}
    (workspace / "recipes" / "m.toml").write_text(toml(model))
    kept = workspace / "receipts" / "m.json"
    written = ("resolve", "recipes/m.toml", "--receipt", kept)
    registry(*written, cwd=workspace, code=0)
    (workspace / "pyproject.toml").write_text(POLICY)

    def codes(*arguments: str | Path, cwd: Path = workspace, code: int) -> list[str]:
        done = registry("verify", kept, *arguments, "--json", cwd=cwd, code=code)
        return [it["key"] for it in json.loads(done.stdout)["differences"]]

    assert codes(code=2) == ["hold_software"]
    gate = registry("check", "--format", "json", cwd=workspace).stdout
    assert "hold_software" in {it["key"] for it in json.loads(gate)["verdicts"]}
    registry(*written, cwd=workspace, code=0)  # nothing but the policy has changed
    schema = json.loads((repository / "docs" / "schema" / "receipt.schema.json").read_text())
    body = json.loads(kept.read_text())
    jsonschema.validate(body, schema)
    assert body["hold_software"] == ["mamba-ssm", "torch"]
    assert codes(code=0) == []
    # Elsewhere, where no policy is, with another version.
    body["software"]["torch"] = "1.0"
    body["digest"] = receipt_digest(body)
    kept.write_text(json_text(body))
    assert codes(cwd=node, code=2) == ["software.torch"]
    assert "(information)" not in registry("verify", kept, cwd=node, code=2).stdout
    gate = registry("check", "--format", "json", cwd=workspace).stdout
    assert {it["key"] for it in json.loads(gate)["verdicts"]} & {"software.torch"} == set()
    registry("accept", kept, "--reason", "Measured anew.", "--by", "a", cwd=node, code=0)
    assert codes(code=0) == []
