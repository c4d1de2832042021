"""`registry accept`: a changed plan on the record, and nothing without one."""

import datetime
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import megatron_releases
from megatron_seams.errors import AcceptanceInvalid, ReceiptUnreadable, Refusal
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.receipt import make_receipt, read_receipt
from megatron_seams.records.verify import verify
from seam_support import environment, make_seam, recipe, registry

SEAM = make_seam("kda", "kda", slots=["mamba_layer"])
OTHER = make_seam("kda", "kda", slots=["mamba_layer"], version="2.0")
ASKED = {"pattern": "K*", "tokens": {"K": "kda"}}


def acceptance(reason: str = "The new version was reviewed.") -> Acceptance:
    return Acceptance(by="the reviewer", reason=reason, when=datetime.date(2026, 12, 1))


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    file = tmp_path / "receipt.json"
    asked = recipe(**ASKED)
    file.write_text(make_receipt(resolve(asked, environment(SEAM)), asked), encoding="utf-8")
    return file


def body(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_an_accepted_change_verifies_and_says_who_why_and_what(receipt: Path) -> None:
    before = body(receipt)
    assert verify(receipt, environment(OTHER))
    found = accept(receipt, environment(OTHER), acceptance())
    assert [difference.key for difference in found] == ["seams.kda.version"]
    assert verify(receipt, environment(OTHER)) == ()
    assert verify(receipt, environment(SEAM))
    assert body(receipt)["accepted"] == [
        {
            "by": "the reviewer",
            "reason": "The new version was reviewed.",
            "date": "2026-12-01",
            "previous_digest": before["digest"],
            "differences": [
                {"what": "seams.kda.version", "was": "1.0", "now": "2.0", "positions": []}
            ],
        }
    ]
    assert body(receipt)["request"] == before["request"]


def test_the_record_keeps_every_earlier_acceptance(receipt: Path) -> None:
    accept(receipt, environment(OTHER), acceptance("First."))
    middle = body(receipt)["digest"]
    accept(receipt, environment(SEAM), acceptance("Back again."))
    history = body(receipt)["accepted"]
    assert [entry["reason"] for entry in history] == ["First.", "Back again."]
    assert history[1]["previous_digest"] == middle


def test_a_receipt_that_fits_is_not_touched(receipt: Path) -> None:
    before = receipt.read_bytes()
    assert accept(receipt, environment(SEAM), acceptance()) == ()
    assert receipt.read_bytes() == before


def test_a_plan_that_cannot_be_made_cannot_be_accepted(receipt: Path) -> None:
    before = receipt.read_bytes()
    with pytest.raises(Refusal, match="a provider for family 'kda'"):
        accept(receipt, environment(), acceptance())
    assert receipt.read_bytes() == before


def test_an_edited_history_breaks_the_receipt(receipt: Path) -> None:
    accept(receipt, environment(OTHER), acceptance())
    receipt.write_text(receipt.read_text().replace("the reviewer", "somebody else"))
    with pytest.raises(ReceiptUnreadable, match="edited"):
        read_receipt(receipt)


def test_a_receipt_that_cannot_be_replaced_stays_whole(
    receipt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = receipt.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(AcceptanceInvalid, match="nothing was changed"):
        accept(receipt, environment(OTHER), acceptance())
    assert receipt.read_bytes() == before
    assert [file.name for file in receipt.parent.iterdir()] == [receipt.name]


def test_the_same_acceptance_gives_the_same_bytes(receipt: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(receipt.read_bytes())
    for file in (receipt, copy):
        accept(file, environment(OTHER), acceptance())
    assert receipt.read_bytes() == copy.read_bytes()


def test_an_accepted_receipt_is_of_the_published_schema(receipt: Path, repository: Path) -> None:
    schema = json.loads((repository / "docs" / "schema" / "receipt.schema.json").read_text())
    accept(receipt, environment(OTHER), acceptance())
    jsonschema.validate(body(receipt), schema)


def test_a_reason_is_required_and_says_something(receipt: Path) -> None:
    before = receipt.read_bytes()
    assert registry("accept", str(receipt)).returncode == 2
    done = registry("accept", str(receipt), "--reason", "  ")
    assert done.returncode == 2
    assert "SEAM-V03" in done.stderr
    assert receipt.read_bytes() == before


@pytest.mark.published
def test_a_receipt_of_an_older_release_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    older, newer = (str(megatron_releases.wheel(release)) for release in ("0.18", "0.19"))
    file = str(tmp_path / "receipt.json")
    made = registry("resolve", "M*E-", "--receipt", file, "--megatron", older)
    assert made.returncode == 0, made.stderr
    refused = registry("verify", file, "--megatron", newer)
    assert refused.returncode == 2
    assert "registry accept RECEIPT --reason TEXT" in refused.stderr
    reason = ("--reason", "Upgraded after the smoke run.")
    taken = registry("accept", file, *reason, "--by", "the upgrader", "--megatron", newer)
    assert taken.returncode == 0, taken.stderr
    assert "2 differences accepted by the upgrader" in taken.stdout
    assert registry("verify", file, "--megatron", newer).returncode == 0
    assert registry("verify", file, "--megatron", older).returncode == 2
    again = registry("accept", file, *reason, "--megatron", newer)
    assert "nothing to accept" in again.stdout
